"""Finished things of a store as folders for others, and on the hub."""
