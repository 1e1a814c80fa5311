"""How a workspace comes to life."""
