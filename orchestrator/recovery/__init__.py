"""What makes a sweep survive: one driver, clean stops, checkpoints, failures told apart."""
