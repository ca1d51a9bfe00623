"""The live view of a real sweep: cheap, alive when the driver is killed, clean to leave."""

import contextlib
import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefsweep.orchestrator.execution.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.report.publish import publish_report
from prefsweep.orchestrator.results.status import StatusReader, eta, read_status
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.state.trial_record import (
    TrialRecord,
    newest_metrics,
    read_document,
    status_path,
    trial_status,
)
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.records import Status, TrialStatus

from .faults.harness import Run
from .faults.warm import WarmProcess
from .small import OVERRIDES, small_sweep

COMMAND = [sys.executable, "-m", "prefsweep.orchestrator.commands.cli"]
ENVIRON = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TERM": "xterm"}
DEADLINE_S = 240
SHOW_CURSOR, HIDE_CURSOR = b"\x1b[?25h", b"\x1b[?25l"


# --- refreshing ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(finished_sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    storage = tmp_path_factory.mktemp("finished") / "store"
    return small_sweep(shutil.copytree(finished_sweep.storage, storage))


def test_a_refresh_reads_no_file_of_what_is_finished(
    finished: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = StatusReader(finished)
    first, read = reader.read(), list[str]()

    def note_reads_of(name: str) -> None:
        original = getattr(Store, name)

        def noted(self: Store, path: str) -> bytes | None:
            read.append(path)
            return original(self, path)

        monkeypatch.setattr(Store, name, noted)

    note_reads_of("read")
    note_reads_of("read_record")
    assert reader.read() == first == read_status(finished)
    read.clear()
    reader.read()
    assert read == ["sweeps/small/spec.json", "sweeps/small/lease.json"]
    assert {trial.status for trial in first.trials} == {Status.SUCCEEDED}


def test_a_refresh_sees_what_changed(finished: Sweep) -> None:
    reader, store = StatusReader(finished), finished.store
    reader.read()
    trial = finished.trials[0]
    weights, moved = store.trial(trial.trial_id, "weights"), store.trial(trial.trial_id, "away")
    status = store.read_json(store.trial(trial.trial_id, "status.json"))
    os.rename(store.display(weights), store.display(moved))
    path = store.trial(trial.trial_id, "status.json")
    try:
        store.write_json(path, status | {"status": "running", "step": 1.0})
        assert reader.read().trials[0].status == Status.RUNNING
    finally:
        os.rename(store.display(moved), store.display(weights))
        store.write_json(path, status)
    assert reader.read().trials[0].status == Status.SUCCEEDED


def test_a_stage_in_the_making_has_rows_and_a_rate(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path)
    run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources), until="scores")
    sweep.store.delete(f"{sweep.path('scores')}/manifest.json")
    stage = next(stage for stage in read_status(sweep).stages if stage.name == "scores")
    assert (stage.status, stage.num_done, stage.num_total) == (Status.PENDING, 4, 4)
    assert stage.rows == 12 * sweep.spec.generation.num_completions
    assert stage.rows_per_s is None  # nobody runs it
    holder = _lease_of_this_process(sweep)
    with holder:
        stage = next(stage for stage in read_status(sweep).stages if stage.name == "scores")
        assert stage.status == Status.RUNNING
        assert stage.rows_per_s is not None and stage.rows_per_s > 0
        assert stage.eta_s == 0.0


@contextlib.contextmanager
def _lease_of_this_process(sweep: Sweep) -> Iterator[None]:
    """A lease that began before the shards were made."""
    from prefsweep.orchestrator.state.lease import LEASE, Lease

    lease = Lease(sweep.store, sweep.spec.name)
    lease.acquire()
    path = sweep.store.sweep(sweep.spec.name, LEASE)
    sweep.store.write_json(path, sweep.store.read_json(path) | {"since": time.time() - 3600})
    yield
    lease.release()


def test_the_newest_metrics_keep_the_last_evaluation_on_the_way() -> None:
    lines = (
        b'{"step": 1, "loss": 0.7}\n{"step": 2, "eval/kl": 0.5}\n'
        b'{"step": 3, "loss": 0.6}\n{"step": 4, "lo'
    )
    assert newest_metrics(lines) == {"step": 3, "loss": 0.6, "eval/kl": 0.5}
    assert newest_metrics(None) == {}


def test_a_report_can_be_made_at_any_moment_and_says_what_is_missing(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path)
    run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources), until="pairs")
    publish_report(sweep)
    text = (sweep.store.read("sweeps/small/report/summary.md") or b"").decode()
    assert "not finished: reference, untrained" in text
    assert "0 succeeded, 0 failed, 2 not run (of 2)" in text
    run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources))
    text = (sweep.store.read("sweeps/small/report/summary.md") or b"").decode()
    assert "not finished" not in text and "2 succeeded" in text


# --- real processes ------------------------------------------------------------------------------


class Screen:
    """A real terminal with a `status --watch` on it."""

    def __init__(self, storage: Path) -> None:
        self.master, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 110, 0, 0))
        command = [*COMMAND, "status", "small", "--watch", "--storage", str(storage)]
        environ = {k: v for k, v in ENVIRON.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            command, stdin=terminal, stdout=terminal, stderr=terminal, env=environ
        )
        self.modes = termios.tcgetattr(terminal)
        self.terminal, self.seen = terminal, b""

    def wait_for(self, text: str) -> None:
        deadline, start = time.monotonic() + DEADLINE_S, len(self.seen)
        while text not in plain(self.seen[start:]):
            assert time.monotonic() < deadline, f"{text!r} is not in {plain(self.seen)[-3000:]!r}"
            self.read()

    def read(self) -> None:
        if select.select([self.master], [], [], 0.2)[0]:
            self.seen += os.read(self.master, 65536)

    def leave(self) -> int:
        self.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + DEADLINE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            self.read()
        self.read()
        return self.process.returncode


def plain(data: bytes) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode(errors="replace"))


def wait_until_there(path: Path, process: WarmProcess | subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not path.parent.is_dir() or not list(path.parent.glob(path.name)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def test_watching_goes_on_when_the_driver_is_killed_and_leaves_the_terminal_clean(
    warm_drivers: None, tmp_path: Path
) -> None:
    storage, lines = tmp_path / "store", tmp_path / "lines.txt"
    steps = ["training.max_steps=4000", "training.logging_steps=1"]
    driver = Run(storage, "run", "quickstart", *OVERRIDES, *steps, "--inline").process
    screen: Screen | None = None
    told: subprocess.Popen[bytes] | None = None
    try:
        wait_until_there(storage / "sweeps/small/spec.json", driver)
        with lines.open("wb") as file:
            watch = [*COMMAND, "status", "small", "--watch", "--storage", str(storage)]
            told = subprocess.Popen(watch, stdout=file, stderr=file, env=ENVIRON)
        screen = Screen(storage)
        screen.wait_for(f"run by pid {driver.pid}")
        screen.wait_for("/4000")  # a trial's steps
        wait_until_told(lines, "running", told)
        driver.kill()
        driver.wait()
        screen.wait_for(f"its driver, pid {driver.pid}")
        assert screen.leave() == 0
        assert screen.seen.rindex(SHOW_CURSOR) > screen.seen.rindex(HIDE_CURSOR)
        assert b"\x1b[?1049h" not in screen.seen  # what was on the screen before is still there
        assert termios.tcgetattr(screen.terminal) == screen.modes
        wait_until_told(lines, "has died", told)
        told.send_signal(signal.SIGINT)
        assert told.wait(DEADLINE_S) == 0
    finally:
        for process in (driver, told, screen and screen.process):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
    text = lines.read_text()
    assert all(char.isprintable() or char == "\n" for char in text), text
    assert f"run by pid {driver.pid}" in text and "running" in text


def wait_until_told(lines: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while text not in lines.read_text():
        assert process.poll() is None and time.monotonic() < deadline, lines.read_text()
        time.sleep(0.1)


def test_piped_status_has_no_control_characters_and_every_trial(finished: Sweep) -> None:
    command = [*COMMAND, "status", "small", "--storage", finished.storage]
    environ = {key: value for key, value in ENVIRON.items() if key != "COLUMNS"}
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout
    assert all(char.isprintable() or char == "\n" for char in text)
    assert all(trial.name in text for trial in finished.trials)
    assert "reward_mean" in text and "grad_norm" in text


def test_the_time_to_go_is_known_before_the_first_trial_has_ended() -> None:
    half = TrialStatus("a", "a", Status.RUNNING, "x", 50, 100, step_seconds=0.6)
    waiting = TrialStatus("b", "b", Status.PENDING, "x")
    assert eta([half, waiting]) == 90.0  # each takes 60 s, and half of one is done
    done = TrialStatus("c", "c", Status.SUCCEEDED, "x", 100, 100, seconds=100.0)
    assert eta([done, half, waiting]) == 150.0
    assert eta([done, waiting]) is None
    assert eta([TrialStatus("a", "a", Status.RUNNING, "x")]) is None


def test_a_trial_that_goes_on_from_a_checkpoint_has_the_pace_of_what_it_does_itself(
    tmp_path: Path,
) -> None:
    sweep = small_sweep(tmp_path)
    trial = sweep.trials[0]
    log = TrialRecord(sweep, trial)
    log.restart(900, b"", 1000)
    log.report({"step": 910.0, "loss": 0.5})
    document = read_document(sweep, trial)
    document |= {"resumed": 1000.0, "updated": 1010.0}
    sweep.store.write_json(status_path(sweep.store, trial), document)
    status = trial_status(sweep, trial)
    assert status.step_seconds == 1.0
    assert eta([status]) == pytest.approx(90.0)
    for unknown in ({"resumed": None}, {"resumed_step": 910.0}):
        sweep.store.write_json(status_path(sweep.store, trial), document | unknown)
        assert trial_status(sweep, trial).step_seconds is None
