"""Copies of the metrics in other services."""
