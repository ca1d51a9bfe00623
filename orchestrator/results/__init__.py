"""Reading what a sweep has produced, and statistics over it."""
