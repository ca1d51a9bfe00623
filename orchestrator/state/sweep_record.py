"""state.json of a sweep: its last driver, the commands it was started with, and how it ended."""

import math
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass, replace

from prefsweep.orchestrator.state.command import typed_command
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.records import Status

STATE = "state.json"


@dataclass(frozen=True)
class SweepState:
    """The content of state.json. Times are seconds since 1970, 0 before the first run."""

    status: str = ""
    updated: float = 0.0
    started: float = 0.0
    """Start of the last run."""
    first_started: float = 0.0
    host: str = ""
    pid: int = 0
    commands: tuple[str, ...] = ()
    """Commands that started drivers of this sweep, in order, without repetitions."""


def read_state(store: Store, name: str) -> SweepState:
    """Read state.json; an empty state if it is missing or damaged."""
    document = store.read_object(store.sweep(name, STATE))
    try:
        found = SweepState(**document)
        found = replace(found, commands=tuple(found.commands))
        times = (found.updated, found.started, found.first_started)
        is_valid = all(math.isfinite(time_s) for time_s in times) and isinstance(found.pid, int)
        texts = (found.status, found.host, *found.commands)
        return found if is_valid and all(isinstance(text, str) for text in texts) else SweepState()
    except (TypeError, OverflowError):
        return SweepState()


def record_state(store: Store, name: str, status: Status) -> None:
    """Record that this process runs the sweep, or how its run ended."""
    before, now = read_state(store, name), time.time()
    begins = status == Status.RUNNING
    command = typed_command(sys.argv, os.environ)
    is_new = begins and command and command not in before.commands
    state = SweepState(
        status=status,
        updated=now,
        started=now if begins else before.started or now,
        first_started=before.first_started or now,
        host=socket.gethostname(),
        pid=os.getpid(),
        commands=(*before.commands, command) if is_new else before.commands,
    )
    store.write_json(store.sweep(name, STATE), asdict(state))
