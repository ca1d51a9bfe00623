"""Who may run a sweep: taking, keeping, losing and taking over its lease, whatever clocks do."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from prefsweep.orchestrator.results.status import list_sweeps
from prefsweep.orchestrator.state.lease import (
    HEARTBEAT_S,
    STALE_S,
    Clock,
    Lease,
    Pulse,
    alive,
    read_holder,
)
from prefsweep.orchestrator.state.stop import ask_to_stop
from prefsweep.orchestrator.store import processes
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.errors import LeaseError, StoreError, UsageError


@dataclass
class FakeTime:
    """Clocks that move only when somebody sleeps; `every` is called after each sleep."""

    wall_s: float = 1_000_000.0
    monotonic_s: float = 50.0
    every: Callable[[float], None] = field(default=lambda slept_s: None)

    def sleep(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds
        self.every(self.monotonic_s)

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.wall_s, lambda: self.monotonic_s, self.sleep)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@contextmanager
def another_process() -> Iterator[int]:
    """The pid of a process that lives as long as the block."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


def change(store: Store, **fields: Any) -> None:
    """Make the lease that of somebody else."""
    path = store.sweep("mine", "lease.json")
    store.write_json(path, store.read_json(path) | fields)


def taken_elsewhere(store: Store) -> None:
    """A lease of a driver on another machine."""
    Lease(store, "mine").acquire()
    change(store, host="other", pid=7, machine="elsewhere", token="theirs")


def test_a_driver_takes_the_lease_says_who_it_is_and_gives_it_back(store: Store) -> None:
    lease = Lease(store, "mine", FakeTime().clock)
    lease.acquire()
    lease.beat()
    holder = read_holder(store, "mine")
    assert holder is not None
    assert (holder.pid, holder.since, holder.beats) == (os.getpid(), 1_000_000.0, 1)
    assert holder.is_here and not holder.is_dead
    assert alive(store, {"mine": holder}) == {"mine"}
    lease.release()
    assert read_holder(store, "mine") is None
    assert read_holder(store, "other") is None


def test_a_second_driver_of_this_machine_is_refused_at_once_and_told_who_runs_it(
    store: Store,
) -> None:
    with another_process() as pid:
        Lease(store, "mine").acquire()
        change(store, pid=pid, process=processes.start_time(pid), host="box")
        with pytest.raises(LeaseError, match=rf"host box, pid {pid}, since \d{{4}}-.*stop"):
            Lease(store, "mine").acquire()
    Lease(store, "mine").acquire()  # it is dead now: taken over without waiting


def test_a_process_that_got_the_dead_drivers_number_holds_nothing(store: Store) -> None:
    with another_process() as pid:
        Lease(store, "mine").acquire()
        change(store, pid=pid, process="1")
        Lease(store, "mine").acquire()


def test_a_driver_elsewhere_that_beats_is_refused_within_a_heartbeat(store: Store) -> None:
    taken_elsewhere(store)

    def beat(now_s: float) -> None:
        if now_s > 50 + HEARTBEAT_S:
            change(store, beats=int(now_s))

    time = FakeTime(every=beat)
    with pytest.raises(LeaseError, match="host other, pid 7"):
        Lease(store, "mine", time.clock).acquire()
    assert time.monotonic_s <= 50 + 2 * HEARTBEAT_S


def test_a_driver_elsewhere_without_heartbeat_is_taken_over_after_the_stated_time(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    taken_elsewhere(store)
    time = FakeTime()
    Lease(store, "mine", time.clock).acquire()
    assert STALE_S <= time.monotonic_s - 50 <= STALE_S + 2
    holder = read_holder(store, "mine")
    assert holder is not None and holder.pid == os.getpid()
    assert "sent no heartbeat for 60 s; this run takes over" in caplog.text


@pytest.mark.parametrize("jump_s", [-1e9, 1e9])
def test_setting_the_holders_clock_neither_takes_its_lease_nor_keeps_it(
    store: Store, jump_s: float
) -> None:
    taken_elsewhere(store)
    change(store, since=1_000_000.0 + jump_s, heartbeat=1_000_000.0 + jump_s)
    holds = FakeTime(every=lambda now_s: change(store, beats=int(now_s)))
    with pytest.raises(LeaseError):
        Lease(store, "mine", holds.clock).acquire()
    silent = FakeTime()
    Lease(store, "mine", silent.clock).acquire()
    assert silent.monotonic_s - 50 >= STALE_S


@pytest.mark.parametrize("jump_s", [-1e9, 1e9])
def test_setting_the_observers_clock_neither_takes_a_lease_nor_lets_it_live_for_ever(
    store: Store, jump_s: float
) -> None:
    taken_elsewhere(store)

    def jump(now_s: float) -> None:
        silent.wall_s += jump_s

    silent = FakeTime(every=jump)
    Lease(store, "mine", silent.clock).acquire()
    assert STALE_S <= silent.monotonic_s - 50 <= STALE_S + 2


def test_a_clock_set_back_lets_a_holder_keep_its_lease(store: Store) -> None:
    time = FakeTime()
    lease = Lease(store, "mine", time.clock)
    lease.acquire()
    time.wall_s -= 1e9
    lease.beat()
    time.wall_s += 3e9
    lease.beat()
    holder = read_holder(store, "mine")
    assert holder is not None and holder.beats == 2


def test_who_was_taken_over_notices_and_leaves_the_new_lease_alone(store: Store) -> None:
    lease = Lease(store, "mine")
    lease.acquire()
    change(store, token="theirs", host="other", machine="elsewhere")
    with pytest.raises(LeaseError, match=r"taken over by host other.*writes nothing more"):
        lease.beat()
    lease.release()
    holder = read_holder(store, "mine")
    assert holder is not None and holder.token == "theirs"


def test_a_lease_that_was_deleted_is_written_again_by_its_holder(store: Store) -> None:
    lease = Lease(store, "mine")
    lease.acquire()
    store.delete(store.sweep("mine", "lease.json"))
    lease.beat()
    assert read_holder(store, "mine") is not None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"host": 1}', b"\xff\xfe"])
def test_a_lease_that_cannot_be_read_holds_nobody_up(store: Store, content: bytes) -> None:
    store.write(store.sweep("mine", "lease.json"), content)
    Lease(store, "mine").acquire()
    assert json.loads(store.read(store.sweep("mine", "lease.json")) or b"")["pid"] == os.getpid()


@pytest.mark.parametrize(
    "wrong",
    [
        *({"since": time} for time in (1e18, -1e18, "yesterday", None)),
        *({"host": None}, {"process": 1}, {"pid": "1"}, {"beats": None}),
    ],
)
def test_a_lease_with_impossible_values_holds_nobody_up(
    store: Store, wrong: dict[str, object]
) -> None:
    taken_elsewhere(store)
    change(store, **wrong)
    assert read_holder(store, "mine") is None
    Lease(store, "mine").acquire()


def compete(root: str, ready: Any, results: Any) -> None:
    lease = Lease(Store(root), "mine")
    ready.wait()
    try:
        lease.acquire()
        results.put("holds")
    except LeaseError:
        results.put("refused")
    ready.wait()  # nobody ends, and frees the lease so, before all have tried


def test_of_many_that_start_at_once_one_gets_the_lease(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, results = context.Barrier(6), context.Queue()
    crowd = [
        context.Process(target=compete, args=(str(tmp_path), ready, results)) for _ in range(6)
    ]
    for process in crowd:
        process.start()
    outcomes = sorted(results.get(timeout=60) for _ in crowd)
    for process in crowd:
        process.join(60)
    assert outcomes == ["holds", *["refused"] * 5]


@pytest.mark.parametrize("ahead_s", [-120.0, 0.0, 120.0])
@pytest.mark.parametrize("silent_s", [5.0, 3600.0])
def test_whether_a_driver_elsewhere_is_alive_is_told_by_the_storages_clock(
    store: Store, ahead_s: float, silent_s: float
) -> None:
    """Its heartbeats are stamped by its own clock, which may be two minutes ahead or behind."""
    taken_elsewhere(store)
    change(store, heartbeat=time.time() + ahead_s)
    lease, written_at_s = Path(store.display("sweeps/mine/lease.json")), time.time() - silent_s
    os.utime(lease, (written_at_s, written_at_s))
    is_alive = silent_s < STALE_S
    holder = read_holder(store, "mine")
    assert holder is not None
    assert alive(store, {"mine": holder}) == ({"mine"} if is_alive else set())
    assert Pulse(store, "mine").look() == (holder, is_alive)
    assert [sweep.running for sweep in list_sweeps(store.uri)] == [is_alive]
    if is_alive:
        assert ask_to_stop(store, "mine") == holder
    else:
        with pytest.raises(UsageError, match="sends no heartbeat"):
            ask_to_stop(store, "mine")


def test_in_a_store_that_may_only_be_read_a_driver_elsewhere_is_taken_to_be_alive(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_elsewhere(store)
    os.utime(store.display("sweeps/mine/lease.json"), (0, 0))

    def refuse(self: Store, path: str, data: bytes) -> None:
        raise StoreError("this user may not")

    monkeypatch.setattr(Store, "write", refuse)
    assert Pulse(store, "mine").look()[1]


def test_who_looks_again_and_again_goes_by_the_heartbeats(store: Store) -> None:
    fake = FakeTime()
    pulse = Pulse(store, "mine", fake.clock)
    assert pulse.look() == (None, False)
    taken_elsewhere(store)
    looks: list[bool] = []
    for beats in (0, 1, 1, 1, 2):
        change(store, beats=beats)
        looks.append(pulse.look()[1])
        os.utime(store.display("sweeps/mine/lease.json"), (0, 0))  # not asked again
        fake.sleep(STALE_S / 2 + 1)
    assert looks == [True, True, True, False, True]
