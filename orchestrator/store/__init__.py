"""Files: atomic, verified, retried; in a folder or an object store."""
