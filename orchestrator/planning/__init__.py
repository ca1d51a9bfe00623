"""Before anything starts: what would run, what it takes, and whether all it needs is there."""
