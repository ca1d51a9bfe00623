"""No test needs a network, and property tests give the same examples every time."""

import os
import signal

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # in the background of a shell SIGINT is ignored, and so would it be by what tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=100)
settings.register_profile("long", settings.get_profile("fixed"), max_examples=3000)
settings.load_profile("fixed")
