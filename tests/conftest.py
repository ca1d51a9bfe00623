"""No test needs a network, and property tests give the same examples every time."""

import os

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=100)
settings.register_profile("long", settings.get_profile("fixed"), max_examples=3000)
settings.load_profile("fixed")
