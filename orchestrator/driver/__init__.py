"""How one run of a sweep starts, stops and ends."""
