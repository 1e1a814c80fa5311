"""Where workspaces run: each backend keeps the promises of `worker.ports.Compute`."""
