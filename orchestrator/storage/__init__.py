"""Behind the store: file systems, whole or not at all, manifests, and what may be deleted."""
