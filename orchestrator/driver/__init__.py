"""How one run of a sweep lives and ends."""
