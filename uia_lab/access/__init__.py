"""Who may come in: principals, scoped keys, and where a request carries its credential."""
