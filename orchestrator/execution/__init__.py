"""Where work runs: Ray, or this process."""
