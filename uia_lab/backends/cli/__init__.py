"""Command-line tools as backends: the table of tools, their processes, what they print."""
