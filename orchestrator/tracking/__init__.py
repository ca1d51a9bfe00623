"""Mirrors of metrics in other services."""
