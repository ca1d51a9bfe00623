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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime

from prefsweep.orchestrator.state.hints import hint
from prefsweep.orchestrator.store.processes import is_stopped, machine, started
from prefsweep.orchestrator.store.scratch import scratch_name
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.errors import LeaseError, LostStoreError, StoreError

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


class Pulse:
    """Whether the driver of a sweep is alive, for those who look again and again.

    The first look asks `alive`; later ones see whether the heartbeats go on.
    """

    def __init__(self, store: Store, name: str, clock: Clock | None = None) -> None:
        self._store, self._name, self._clock = store, name, clock or Clock()
        self._seen: Holder | None = None
        self._seen_at_s = 0.0
        self._is_alive = False

    def look(self) -> tuple[Holder | None, bool]:
        """Who has the lease now, and whether that process is alive."""
        found, now_s = read_holder(self._store, self._name), self._clock.monotonic()
        if found is None:
            self._seen, self._is_alive = None, False
        elif self._seen is None or found.is_here or found.token != self._seen.token:
            self._is_alive = bool(alive(self._store, {self._name: found}))
        elif found != self._seen:
            self._is_alive = True
        elif now_s - self._seen_at_s > STALE_S:
            self._is_alive = False
        if found != self._seen:
            self._seen, self._seen_at_s = found, now_s
        return found, self._is_alive


def alive(store: Store, holders: Mapping[str, Holder]) -> set[str]:
    """The sweeps (name -> who has its lease) whose driver is alive, as far as one look tells: good
    enough to show, not to take the lease.

    A driver of another machine is alive if it has renewed its lease within STALE_S by the clock of
    the storage, because the clocks of machines differ. Where the storage does not tell the time, or
    may only be read, such a driver is taken to be alive.
    """
    living = {name for name, holder in holders.items() if not holder.is_dead}
    elsewhere = sorted(name for name in living if not holders[name].is_here)
    silent_s = _unchanged_s(store, [store.sweep(name, LEASE) for name in elsewhere])
    return living - {n for n, s in zip(elsewhere, silent_s, strict=True) if s > STALE_S}


def _unchanged_s(store: Store, paths: Sequence[str]) -> list[float]:
    """Seconds since these files were written, by the storage's clock; 0 where it does not tell."""
    if not paths:
        return []
    probe = store.scratch(scratch_name())
    try:
        store.write(probe, b"")
        now_ns, *written_ns = (at_ns for _, at_ns in store.stamps([probe, *paths]))
        store.delete(probe)
    except StoreError:
        return [0.0] * len(paths)
    return [(now_ns - at_ns) / 1e9 if now_ns and at_ns else 0.0 for at_ns in written_ns]


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
