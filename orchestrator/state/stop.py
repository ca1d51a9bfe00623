"""The request to stop a sweep cleanly: a small file in the sweep's folder, polled by its processes.

Ctrl-C, SIGTERM and `prefsweep stop` make the same request. The driver then starts no more work, and
each running trial saves a checkpoint at its next step. A new run deletes the request first, so it
only stops the run it was made for.
"""

import os
import socket
import time
from collections.abc import Callable

from prefsweep.orchestrator.state.hints import hint
from prefsweep.orchestrator.state.lease import (
    STALE_S,
    Holder,
    alive,
    continue_or_end,
    read_holder,
)
from prefsweep.orchestrator.state.sweep_record import read_state
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.errors import UsageError

STOP = "stop.json"
POLL_S = 1.0


def request_stop(store: Store, name: str) -> None:
    """Request that the sweep `name` stops at the next safe point."""
    request = {"host": socket.gethostname(), "pid": os.getpid(), "requested": time.time()}
    store.write_json(store.sweep(name, STOP), request)


def stop_requested(store: Store, name: str) -> bool:
    """Whether a stop was requested. Reads one small file: call it about once a second."""
    return store.read_record(store.sweep(name, STOP)) is not None


def clear_stop(store: Store, name: str) -> None:
    """Delete the request."""
    store.delete(store.sweep(name, STOP))


def polled_stop(store: Store, name: str) -> Callable[[], bool]:
    """`stop_requested` for use in loops."""
    return polled(lambda: stop_requested(store, name))


def polled(look: Callable[[], bool]) -> Callable[[], bool]:
    """`look` for use in loops: called at most once in POLL_S, and not again once it is true."""
    is_so, next_look_s = False, 0.0

    def seen() -> bool:
        nonlocal is_so, next_look_s
        if not is_so and time.monotonic() >= next_look_s:
            is_so = look()
            next_look_s = time.monotonic() + POLL_S
        return is_so

    return seen


def ask_to_stop(store: Store, name: str) -> Holder:
    """Ask the driver that runs a sweep to stop; returns that driver. Raises UsageError."""
    holder = read_holder(store, name)
    if holder is None or not alive(store, {name: holder}):
        if name not in store.sweeps():
            raise UsageError(f"there is no sweep {name!r} in --storage {store.uri}")
        died = "" if holder is None else f"; its driver ({holder}) sends no heartbeat"
        raise UsageError(f"sweep {name!r} is not running{died}: there is nothing to stop")
    request_stop(store, name)
    return holder


def wait_for_end(store: Store, name: str, holder: Holder) -> str:
    """Wait until that driver's run ends; returns a line that says how it ended."""
    seen, seen_at_s = holder, time.monotonic()
    while True:
        found = read_holder(store, name)
        if found is None or found.token != holder.token:
            break
        if found != seen:
            seen, seen_at_s = found, time.monotonic()
        resume = hint("resume", name, storage=store.uri)
        if found.is_dead:
            return f"its process has died; {resume} continues the sweep"
        if found.is_stopped:
            problem = continue_or_end(found)
            return f"its process does not respond: {problem}. It stops once it is continued"
        if time.monotonic() - seen_at_s > STALE_S:
            silent = f"its process has not responded for {STALE_S:.0f} s"
            if found.is_here:
                return f"{silent}, but exists: `kill -KILL {found.pid}` ends it, then {resume}"
            return f"{silent}; if its machine or its process is gone, {resume} continues the sweep"
        time.sleep(POLL_S / 2)
    status = read_state(store, name).status
    if status == "interrupted":
        return f"stopped; {hint('resume', name, storage=store.uri)} continues the sweep"
    more = hint("status", name, storage=store.uri)
    return f"it has ended ({status or 'unknown'}); {more} shows more"
