"""What the house talks about: tasks, requests, events, backends, errors. No I/O, nothing else of ours."""
