"""One job each, in plain Python: no Ray, no W&B, no store; everything runs and tests in-process."""
