"""One driver per sweep: a lease file in the sweep's folder, renewed by heartbeats.

A process that finds a lease uses its own monotonic clock to decide whether the heartbeats continue.
Wall-clock times in the lease are only for display, so changing a clock has no effect. On a local
file system, acquiring and renewing the lease are atomic. On an object store they are not: two
drivers that start within a second detect each other at the next heartbeat, and the work done twice
is harmless because artefacts are content-addressed.
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
from prefsweep.orchestrator.store.processes import is_stopped, machine, start_time
from prefsweep.orchestrator.store.scratch import scratch_name
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.errors import LeaseError, LostStoreError, StoreError

log = logging.getLogger(__name__)

LEASE = "lease.json"
HEARTBEAT_S = 5.0
STALE_S = 60.0
"""A driver on another machine counts as dead after this long without a heartbeat."""


@dataclass(frozen=True)
class Holder:
    """The process that runs a sweep. Times are seconds since 1970 by that machine's clock."""

    host: str
    pid: int
    since: float
    heartbeat: float
    beats: int
    """Heartbeats so far."""
    token: str
    """Random, different for each run."""
    machine: str
    process: str
    """Start time of the process, as given by `processes.start_time`."""

    @property
    def is_here(self) -> bool:
        """Whether the process is on this machine, where it can be looked up."""
        return self.machine == machine()

    @property
    def is_dead(self) -> bool:
        """Whether the process is known to have ended."""
        return self.is_here and start_time(self.pid) != self.process

    @property
    def is_stopped(self) -> bool:
        """Whether the process exists but is stopped (`kill -STOP`, Ctrl-Z)."""
        return self.is_here and not self.is_dead and is_stopped(self.pid)

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since).astimezone()
        return f"host {self.host}, pid {self.pid}, since {since:%Y-%m-%d %H:%M:%S %Z}"


@dataclass(frozen=True)
class Clock:
    """The clocks that a lease reads; tests pass their own."""

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
        """Acquire the lease. Raises LeaseError if a driver that is alive holds it.

        If a driver of another machine holds it, this waits for its next heartbeat, or for STALE_S.
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
                remedy = f"Wait until it ends, or stop it with {stop}"
                if found.is_stopped:
                    remedy = f"Its process does not respond: {continue_or_end(found)}"
                raise LeaseError(
                    f"sweep {self._name!r} is already running: {found}. {remedy}. This run has "
                    "changed nothing"
                )
            if seen is None:
                log.info(
                    "another driver holds the sweep's lease (%s); waiting up to %.0f s for its "
                    "next heartbeat",
                    found,
                    STALE_S,
                )
                seen = found
            self._clock.sleep(min(1.0, HEARTBEAT_S))

    def beat(self) -> None:
        """Renew the lease.

        Raises LeaseError if another driver has taken it, LostStoreError if the store is gone.
        """
        mine = self._held()
        self.check_store()
        with self._store.locked(f"{self._path}.lock"):
            found = read_holder(self._store, self._name)
            if found is not None and found.token != mine.token:
                raise LeaseError(
                    f"sweep {self._name!r} was taken over by {found}, because this process sent no "
                    "heartbeat; this run stops and writes nothing more"
                )
            self._mine = replace(mine, heartbeat=self._clock.wall(), beats=mine.beats + 1)
            self._store.write_json(self._path, asdict(self._mine))

    def check_store(self) -> None:
        """Raises LostStoreError if the sweep's folder is gone; it is not created again."""
        name, store = self._name, self._store
        if not store.names(store.sweep(name)):
            resume = hint("resume", name, storage=store.uri)
            raise LostStoreError(
                f"the folder of sweep {name!r} in the store {store.display('').rstrip('/')} "
                "disappeared while the sweep ran (deleted, moved, or its disk was unmounted). The "
                "run stops and writes nothing more. Restore the store and "
                f"{resume}, or run the sweep's spec again"
            )

    def release(self) -> None:
        """Delete the lease, if this process still holds it."""
        mine, self._mine = self._held(), None
        with self._store.locked(f"{self._path}.lock"):
            found = read_holder(self._store, self._name)
            if found is not None and found.token == mine.token:
                self._store.delete(self._path)

    def _take(self, found: Holder | None) -> None:
        if found is not None:
            why = "has ended" if found.is_dead else f"sent no heartbeat for {STALE_S:.0f} s"
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
            process=start_time(pid) or "",
        )
        self._store.write_json(self._path, asdict(self._mine))

    def _held(self) -> Holder:
        assert self._mine is not None, "acquire() must be called first"
        return self._mine


class Pulse:
    """Checks repeatedly whether the driver of a sweep is alive.

    The first check calls `alive`; later ones check whether the heartbeats continue.
    """

    def __init__(self, store: Store, name: str, clock: Clock | None = None) -> None:
        self._store, self._name, self._clock = store, name, clock or Clock()
        self._seen: Holder | None = None
        self._seen_at_s = 0.0
        self._is_alive = False

    def look(self) -> tuple[Holder | None, bool]:
        """The current holder of the lease, and whether its process is alive."""
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
    """The names of the sweeps (name -> holder of its lease) whose driver seems to be alive. This is
    accurate enough for display, but not for acquiring the lease.

    A driver of another machine is alive if it has renewed its lease within STALE_S by the clock of
    the storage, because the clocks of machines differ. If the storage gives no times, or is
    read-only, such a driver counts as alive.
    """
    living = {name for name, holder in holders.items() if not holder.is_dead}
    elsewhere = sorted(name for name in living if not holders[name].is_here)
    silent_s = _unchanged_s(store, [store.sweep(name, LEASE) for name in elsewhere])
    return living - {n for n, s in zip(elsewhere, silent_s, strict=True) if s > STALE_S}


def _unchanged_s(store: Store, paths: Sequence[str]) -> list[float]:
    """Seconds since these files were written, by the storage's clock; 0 if it gives no times."""
    if not paths:
        return []
    probe = store.scratch(scratch_name())
    try:
        store.write(probe, b"")
        now_ns, *written_ns = (at_ns for _, at_ns in store.file_versions([probe, *paths]))
        store.delete(probe)
    except StoreError:
        return [0.0] * len(paths)
    return [(now_ns - at_ns) / 1e9 if now_ns and at_ns else 0.0 for at_ns in written_ns]


def continue_or_end(holder: Holder) -> str:
    """How to continue or end a stopped driver."""
    return (
        f"it is stopped (kill -STOP, Ctrl-Z); `kill -CONT {holder.pid}` continues it, "
        f"`kill -KILL {holder.pid}` ends it"
    )


def read_holder(store: Store, name: str) -> Holder | None:
    """The holder of a sweep's lease, dead or alive; None without a lease (or a readable one)."""
    document = store.read_json(store.sweep(name, LEASE))
    try:
        found = Holder(**document)
        found = replace(found, since=float(found.since), heartbeat=float(found.heartbeat))
        texts = (found.host, found.token, found.machine, found.process)
        is_valid = all(isinstance(text, str) for text in texts)
        is_valid = is_valid and all(isinstance(number, int) for number in (found.pid, found.beats))
        return found if is_valid and str(found) else None  # str() fails if `since` is out of range
    except (TypeError, ValueError, OverflowError, OSError):
        return None
