"""Models and datasets for others."""
