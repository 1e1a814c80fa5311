"""Where and how much: the environment, frozen. Imports nothing of ours."""
