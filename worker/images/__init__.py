"""Where a runtime's image comes from: built here from a pinned template, or pulled from a registry; never one for the other."""
