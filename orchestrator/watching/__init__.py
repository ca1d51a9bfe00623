"""A sweep while it runs and after: its status, the live view, and the mirror in W&B."""
