"""Wire formats to the domain and back, one file a dialect; used by doors and by adapters."""
