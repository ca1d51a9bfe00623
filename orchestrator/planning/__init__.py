"""Before a run: what it would do, what that costs, and whether all it needs is available."""
