"""The doors: tornado handlers that translate between a wire and the manager, and nothing else."""
