"""Local models: which ones there are, how they come, and the processes that run them."""
