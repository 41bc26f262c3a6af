"""What outlives a process, in one SQLite file: the request log and the aliases."""
