"""Order, placement and recovery: the only package that imports Ray and W&B."""
