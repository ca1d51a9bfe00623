"""The request to stop a sweep cleanly: a small file in the sweep's folder that all of it polls.

Ctrl-C, SIGTERM and `prefsweep stop` make the same request. The driver hands out nothing more when
it sees it, and a training saves a checkpoint at its next step. Whoever starts a run clears it
first, so a request never outlives the run it was made for.
"""

import os
import socket
import time

from prefsweep.orchestrator.store import Store

STOP = "stop.json"


def request_stop(store: Store, name: str) -> None:
    """Ask whoever runs the sweep `name` to stop at the next safe point."""
    request = {"host": socket.gethostname(), "pid": os.getpid(), "requested": time.time()}
    store.write_json(store.sweep(name, STOP), request)


def stop_requested(store: Store, name: str) -> bool:
    """Whether the sweep `name` was asked to stop; one small read, so ask about once a second."""
    return store.read(store.sweep(name, STOP)) is not None


def clear_stop(store: Store, name: str) -> None:
    """Forget the request."""
    store.delete(store.sweep(name, STOP))
