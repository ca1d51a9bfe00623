"""What a worker process does, with its results in the store."""
