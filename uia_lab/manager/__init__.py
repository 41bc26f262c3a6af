"""Parts of the manager: the journey of a request, the life of a backend, live topics."""
