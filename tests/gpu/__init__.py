"""Tests that need a CUDA device; they are skipped where there is none."""
