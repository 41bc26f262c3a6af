"""Which backend serves. Synchronous and deterministic: time and random numbers are passed in."""
