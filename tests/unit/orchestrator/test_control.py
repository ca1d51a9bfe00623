"""When a run may go on: signals, requests and a lost lease, with the real signals."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefsweep.orchestrator.display.status import _headline
from prefsweep.orchestrator.driver import control as control_module
from prefsweep.orchestrator.driver.control import SAME_SIGNAL_S, Control
from prefsweep.orchestrator.results.status import driver_status
from prefsweep.orchestrator.state import stop
from prefsweep.orchestrator.state.lease import Lease, Pulse, read_holder
from prefsweep.orchestrator.state.stop import (
    ask_to_stop,
    request_stop,
    stop_requested,
    wait_for_end,
)
from prefsweep.orchestrator.store.processes import start_time
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.errors import LeaseError, LostStoreError, UsageError
from prefsweep.sweeps.records import SweepStatus

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "TICK_S", 0.02)
    monkeypatch.setattr(control_module, "HEARTBEAT_S", 0.05)


@pytest.fixture(autouse=True)
def hangup_is_not_ignored() -> Iterator[None]:
    """Whether the tests themselves run under nohup or not."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_for_a_stop_at_the_next_safe_point(
    store: Store, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), Control(store, "mine") as control:
        control.check()
        control.finishing = "finishing the shards in flight first"
        send(number)
        wait_until(lambda: stop_requested(store, "mine"))  # so that all workers hear of it
        assert "stopping; finishing the shards in flight first (Ctrl-C from now on" in caplog.text
        control.check()
        raise AssertionError("the safe point lets the run go on")
    assert signal.getsignal(number) is before
    assert not stop_requested(store, "mine")
    assert read_holder(store, "mine") is None


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_stops_at_once(store: Store, number: signal.Signals) -> None:
    with Control(store, "mine"):
        send(signal.SIGTERM)
        send(signal.SIGTERM)  # as `timeout` does: one signal to the process, one to its group
        time.sleep(1.5 * SAME_SIGNAL_S)
        with pytest.raises(KeyboardInterrupt):
            send(number)
            time.sleep(60)


@pytest.mark.parametrize("number", SIGNALS)
def test_where_nothing_is_lost_the_first_signal_stops_at_once(
    store: Store, number: signal.Signals
) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        Control(store, "mine") as control,
        control.interruptible(),
    ):
        send(number)
        time.sleep(60)


def test_a_request_in_the_store_stops_the_run_and_an_old_one_does_not(store: Store) -> None:
    request_stop(store, "mine")
    with Control(store, "mine") as control:
        control.check()
        holder = ask_to_stop(store, "mine")
        assert holder.pid == os.getpid()
        with pytest.raises(KeyboardInterrupt):
            control.check()
    assert "it has ended (unknown)" in wait_for_end(store, "mine", holder)


def test_nobody_can_be_asked_where_nobody_runs(store: Store) -> None:
    with pytest.raises(UsageError, match="there is no sweep 'mine'"):
        ask_to_stop(store, "mine")
    with Control(store, "mine"):
        pass
    with pytest.raises(UsageError, match="sweep 'mine' is not running: there is nothing to stop"):
        ask_to_stop(store, "mine")
    assert not stop_requested(store, "mine")


def test_a_run_whose_lease_was_taken_is_ended_where_it_is_and_leaves_the_lease(
    store: Store,
) -> None:
    path = store.sweep("mine", "lease.json")
    with Control(store, "mine") as control:
        with pytest.raises(KeyboardInterrupt):
            store.write_json(path, store.read_json(path) | {"token": "theirs"})
            time.sleep(60)
        assert control.lost is not None
        with pytest.raises(LeaseError, match="was taken over"):
            control.check()
    holder = read_holder(store, "mine")
    assert holder is not None and holder.token == "theirs"


def test_a_hangup_that_is_ignored_stays_ignored(store: Store) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with Control(store, "mine") as control:
            send(signal.SIGHUP)
            control.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_output_goes_nowhere_once_its_terminal_is_gone() -> None:
    code = """
import os, pty, sys
from prefsweep.orchestrator.driver.control import _leave_lost_terminal
master, slave = pty.openpty()
os.dup2(slave, 2)
_leave_lost_terminal()
os.close(slave)
assert os.isatty(2), "a terminal that is there is left alone"
os.close(master)
try:
    os.write(2, b"lost")
except OSError:
    _leave_lost_terminal()
os.write(2, b"nowhere")
print("went on")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "went on\n"


def test_a_store_that_is_removed_ends_the_run_at_once_and_is_not_made_anew(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    with Control(store, "mine") as control:
        with pytest.raises(KeyboardInterrupt):
            shutil.rmtree(tmp_path / "store")
            time.sleep(60)
        assert isinstance(control.lost, LostStoreError)
        with pytest.raises(LostStoreError, match=r"the folder of sweep 'mine' .* disappeared"):
            control.check()
        with pytest.raises(LostStoreError, match="was removed, or its disk was unmounted"):
            store.write("trials/a/status.json", b"{}")
        with pytest.raises(LostStoreError), store.staging():
            pass
        with pytest.raises(LostStoreError):
            store.append("trials/a/metrics.jsonl", b"")
    assert not (tmp_path / "store").exists()


def test_a_driver_that_is_stopped_does_not_respond_but_has_not_died(store: Store) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        Lease(store, "mine").acquire()
        path = store.sweep("mine", "lease.json")
        other = {"pid": process.pid, "process": start_time(process.pid)}
        store.write_json(path, store.read_json(path) | other)
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: (read_holder(store, "mine") or pytest.fail("no lease")).is_stopped)
        go_on = f"`kill -CONT {process.pid}` continues it"
        with pytest.raises(LeaseError, match=f"does not respond: it is stopped .*{go_on}"):
            Lease(store, "mine").acquire()
        holder = ask_to_stop(store, "mine")
        assert f"does not respond: it is stopped (kill -STOP, Ctrl-Z); {go_on}" in wait_for_end(
            store, "mine", holder
        )
        driver = driver_status(Pulse(store, "mine"))
        assert driver is not None and driver.alive and not driver.responding
        said = str(_headline(SweepStatus("mine", [], [], driver=driver)))
        assert f"not responding: its driver, pid {process.pid}" in said
        assert stop_requested(store, "mine"), "it hears of it once it runs"
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: not holder.is_stopped)
        process.kill()


def test_a_driver_that_is_there_and_silent_is_not_called_dead(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "STALE_S", 0.0)
    Lease(store, "mine").acquire()
    holder = ask_to_stop(store, "mine")
    said = wait_for_end(store, "mine", holder)
    assert f"but exists: `kill -KILL {os.getpid()}` ends it" in said


def test_the_lease_is_kept_alive_while_the_run_works(store: Store) -> None:
    with Control(store, "mine"):
        wait_until(lambda: (read_holder(store, "mine") or pytest.fail("no lease")).beats > 2)
