"""No test needs a network, and property tests give the same examples every time."""

import os

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("fixed", deadline=None, derandomize=True)
settings.load_profile("fixed")
