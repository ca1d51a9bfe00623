"""One driver per sweep: a lease in the sweep's folder, kept alive by heartbeats.

Whoever finds a lease decides by its own monotonic clock whether the heartbeats go on; wall clocks
are only for people to read, so setting one takes no lease and keeps none. On a local file system
taking and renewing it are atomic. On an object store it is advice: two drivers that start in the
same second notice at the next heartbeat, and content addresses make the doubled work harmless.
"""

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime

from prefsweep.orchestrator.state.hints import hint
from prefsweep.orchestrator.store.processes import is_stopped, machine, started
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.errors import LeaseError, LostStoreError

log = logging.getLogger(__name__)

LEASE = "lease.json"
HEARTBEAT_S = 5.0
STALE_S = 60.0
"""A driver on another machine that gives no sign for that long is taken to be dead."""


@dataclass(frozen=True)
class Holder:
    """Who runs a sweep. Times are seconds since 1970 by the holder's clock."""

    host: str
    pid: int
    since: float
    heartbeat: float
    beats: int
    """Heartbeats so far."""
    token: str
    """Another one for every run."""
    machine: str
    process: str
    """When the process was started, as `processes.started` tells it."""

    @property
    def is_here(self) -> bool:
        """Whether its process is of this machine, where it can be looked up."""
        return self.machine == machine()

    @property
    def is_dead(self) -> bool:
        """Whether its process is known to have ended."""
        return self.is_here and started(self.pid) != self.process

    @property
    def is_stopped(self) -> bool:
        """Whether its process is there but does not run (`kill -STOP`, Ctrl-Z)."""
        return self.is_here and not self.is_dead and is_stopped(self.pid)

    @property
    def seems_alive(self) -> bool:
        """What one look tells: good enough to show, not to take the lease.

        A process of another machine is judged by its last heartbeat and the wall clock here.
        """
        is_silent = not self.is_here and time.time() - self.heartbeat > STALE_S
        return not (self.is_dead or is_silent)

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since).astimezone()
        return f"host {self.host}, pid {self.pid}, since {since:%Y-%m-%d %H:%M:%S %Z}"


@dataclass(frozen=True)
class Clock:
    """The clocks that a lease reads; tests bring their own."""

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Lease:
    """This process's claim to run the sweep `name`."""

    def __init__(self, store: Store, name: str, clock: Clock | None = None) -> None:
        self._store, self._name, self._clock = store, name, clock or Clock()
        self._path = store.sweep(name, LEASE)
        self._mine: Holder | None = None

    def acquire(self) -> None:
        """Take the lease. Raises LeaseError if a driver that lives has it.

        For one of another machine that takes until its next heartbeat, or STALE_S without one.
        """
        seen: Holder | None = None
        seen_at_s = self._clock.monotonic()
        while True:
            waited_s = self._clock.monotonic() - seen_at_s
            with self._store.locked(f"{self._path}.lock"):
                found = read_holder(self._store, self._name)
                if found is None or found.is_dead or (found == seen and waited_s >= STALE_S):
                    self._take(found)
                    return
            lives_here = found.is_here and found.pid != os.getpid()
            if lives_here or (seen is not None and found != seen):
                stop = hint("stop", self._name, storage=self._store.uri)
                remedy = f"Wait for it, or stop it with {stop}"
                if found.is_stopped:
                    remedy = f"Its process does not respond: {continue_or_end(found)}"
                raise LeaseError(
                    f"sweep {self._name!r} is being run already: {found}. {remedy}; this run has "
                    "changed nothing"
                )
            if seen is None:
                log.info(
                    "the sweep's lease is held (%s); waiting up to %.0f s for a sign of life",
                    found,
                    STALE_S,
                )
                seen = found
            self._clock.sleep(min(1.0, HEARTBEAT_S))

    def beat(self) -> None:
        """Show that this process lives.

        Raises LeaseError if another one has taken the lease, LostStoreError if the store is gone.
        """
        mine = self._held()
        self.check_store()
        with self._store.locked(f"{self._path}.lock"):
            found = read_holder(self._store, self._name)
            if found is not None and found.token != mine.token:
                raise LeaseError(
                    f"sweep {self._name!r} was taken over by {found}, because this process gave no "
                    "sign of life; it stops here and writes nothing more"
                )
            self._mine = replace(mine, heartbeat=self._clock.wall(), beats=mine.beats + 1)
            self._store.write_json(self._path, asdict(self._mine))

    def check_store(self) -> None:
        """Raises LostStoreError if the sweep's folder is gone: nothing is made anew there."""
        name, store = self._name, self._store
        if not store.names(store.sweep(name)):
            resume = hint("resume", name, storage=store.uri)
            raise LostStoreError(
                f"the store {store.display('').rstrip('/')} has lost the folder of sweep {name!r} "
                "while it ran (removed, moved, or its disk is away). The run ends here and writes "
                f"nothing more. Bring the store back and {resume}, or run the sweep's spec again"
            )

    def release(self) -> None:
        """Give the lease back, if it is still this process's."""
        mine, self._mine = self._held(), None
        with self._store.locked(f"{self._path}.lock"):
            found = read_holder(self._store, self._name)
            if found is not None and found.token == mine.token:
                self._store.delete(self._path)

    def _take(self, found: Holder | None) -> None:
        if found is not None:
            why = "has ended" if found.is_dead else f"gave no sign of life for {STALE_S:.0f} s"
            log.warning("the sweep's driver (%s) %s; this run takes over", found, why)
        now, pid = self._clock.wall(), os.getpid()
        self._mine = Holder(
            host=socket.gethostname(),
            pid=pid,
            since=now,
            heartbeat=now,
            beats=0,
            token=uuid.uuid4().hex,
            machine=machine(),
            process=started(pid) or "",
        )
        self._store.write_json(self._path, asdict(self._mine))

    def _held(self) -> Holder:
        assert self._mine is not None, "the lease is acquired first"
        return self._mine


def continue_or_end(holder: Holder) -> str:
    """How to let a stopped driver go on, or end it."""
    return (
        f"it is stopped (kill -STOP, Ctrl-Z); `kill -CONT {holder.pid}` lets it go on, "
        f"`kill -KILL {holder.pid}` ends it"
    )


def read_holder(store: Store, name: str) -> Holder | None:
    """Who has the lease of a sweep, dead or alive; None where nobody has (or it is unreadable)."""
    document = store.read_json(store.sweep(name, LEASE))
    try:
        found = Holder(**document)
        found = replace(found, since=float(found.since), heartbeat=float(found.heartbeat))
        texts = (found.host, found.token, found.machine, found.process)
        is_whole = all(isinstance(text, str) for text in texts)
        is_whole = is_whole and all(isinstance(number, int) for number in (found.pid, found.beats))
        return found if is_whole and str(found) else None  # str: a time that no calendar has
    except (TypeError, ValueError, OverflowError, OSError):
        return None
