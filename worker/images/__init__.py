"""Where a runtime's image comes from."""
