"""How a workspace goes."""
