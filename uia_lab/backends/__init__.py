"""One adapter a kind of backend. An adapter translates and decides nothing."""
