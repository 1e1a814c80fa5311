"""Puts the world of a worker process together from its settings."""
