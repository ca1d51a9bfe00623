"""status.json and metrics.jsonl are read back whatever has become of them."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from prefsweep.orchestrator.state import trial_record
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.state.trial_record import (
    TrialRecord,
    parse_metrics,
    read_document,
    trial_status,
    write_status,
)
from prefsweep.orchestrator.store.store import Store, new_manifest
from prefsweep.sweeps.records import Failure, Status
from tests.integration.small import small_sweep


@given(st.binary(max_size=200))
def test_any_bytes_are_read_as_the_metrics_that_are_in_them(data: bytes) -> None:
    line = b'{"step": 2.0, "loss": 0.5}'
    assert {"step": 2.0, "loss": 0.5} in parse_metrics(data + b"\n" + line + b"\n" + data)


@pytest.mark.parametrize(
    "line",
    [b'{"step": 1.0, "lo', b'{"loss": 1}', b'{"step": "1"}', b'{"step": NaN}', b"[1]", b"[" * 9999],
)
def test_a_line_without_a_step_or_cut_short_is_left_out(line: bytes) -> None:
    assert parse_metrics(line) == []


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b'{"status": "gone", "failure": 3, "attempts": "x", "halvings": null}'],
)
def test_a_damaged_status_counts_as_none(tmp_path: Path, data: bytes) -> None:
    sweep = small_sweep(tmp_path)
    trial = sweep.trials[0]
    sweep.store.write(sweep.store.trial(trial.trial_id, "status.json"), data)
    status = trial_status(sweep, trial)
    assert (status.status, status.failure, status.attempts) == (Status.PENDING, None, 0)
    TrialRecord(sweep, trial).begin(0)
    assert trial_status(sweep, trial).attempts == 1


def test_attempts_and_halvings_are_remembered_and_failures_in_a_row_end_with_progress(
    tmp_path: Path,
) -> None:
    sweep = small_sweep(tmp_path)
    trial = sweep.trials[0]
    for progress, stalled in ((0, 1), (0, 2), (4, 1), (4, 2)):
        state = TrialRecord(sweep, trial)
        state.halvings += 1
        state.begin(progress)
        assert state.stalled_attempts == stalled
    write_status(sweep, trial, Status.FAILED, Failure("transient", "gone", log_path="trial.log"))
    write_status(sweep, trial, Status.PENDING)
    found = read_document(sweep, trial)
    assert (found["attempts"], found["halvings"], found["fruitless"]) == (4, 4, 0)
    assert found["failure"] is None and found["last_failure"]["log_path"] == "trial.log"


def metrics_in(sweep: Sweep) -> bytes:
    return sweep.store.read(sweep.store.trial(sweep.trials[0].trial_id, "metrics.jsonl")) or b""


def trained(sweep: Sweep) -> None:
    """Weights of the trial, as another run has made them."""
    with sweep.store.staging() as folder:
        (folder / "weights").mkdir()
        trial_id = sweep.trials[0].trial_id
        path = sweep.store.trial(trial_id, "weights")
        sweep.store.publish(path, folder / "weights", new_manifest(trial_id, 1, 0.0))


def test_two_runs_that_train_a_trial_at_once_write_no_line_twice(tmp_path: Path) -> None:
    one, other = small_sweep(tmp_path), small_sweep(tmp_path, "name=other")
    logs, steps = [TrialRecord(sweep, sweep.trials[0]) for sweep in (one, other)], list[float]()
    for step in range(1, 5):
        for log in logs[: 2 if step < 4 else 1]:  # the second one falls behind
            log.report({"step": float(step)})
            steps = [record["step"] for record in parse_metrics(metrics_in(one))]
            assert steps == [float(n) for n in range(1, len(steps) + 1)]
    assert steps == [1.0, 2.0, 3.0, 4.0]
    logs[1].report({"step": 4.0})
    assert metrics_in(one) == logs[0].metrics


@pytest.mark.parametrize("where", ["disk", "remote"])
def test_the_log_of_a_trial_that_has_its_weights_stays(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sweep = request.getfixturevalue("remote") if where == "remote" else small_sweep(tmp_path)
    first, second = (TrialRecord(sweep, sweep.trials[0]) for _ in range(2))
    for step in range(1, 4):
        first.report({"step": float(step)})
    first.complete()
    trained(sweep)
    second.restart(0, b"", 3.0)
    second.report({"step": 1.0})
    second.write(Status.SUCCEEDED)
    assert metrics_in(sweep) == first.metrics


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A sweep whose store has no append."""
    monkeypatch.setattr(Store, "append", None)
    sweep = small_sweep(tmp_path)
    memory = fs.PyFileSystem(fs.FSSpecHandler(MemoryFileSystem()))
    sweep.store.fs, sweep.store.is_local = memory, False
    return sweep


def lines_in(sweep: Sweep) -> int:
    path = sweep.store.trial(sweep.trials[0].trial_id, "metrics.jsonl")
    return len(parse_metrics(sweep.store.read(path)))


def test_without_append_a_long_log_is_not_written_again_for_every_line(
    remote: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now_s[0], time=time.time)
    monkeypatch.setattr(trial_record, "time", clock)
    written: list[int] = []
    write = Store.write

    def slow_write(self: Store, path: str, data: bytes) -> None:
        now_s[0] += 2.0 if path.endswith("metrics.jsonl") else 0.0
        written.append(len(data))
        write(self, path, data)

    monkeypatch.setattr(Store, "write", slow_write)
    log = TrialRecord(remote, remote.trials[0])
    for step in range(1, 1001):
        log.report({"step": float(step)})
        now_s[0] += 0.1
    assert lines_in(remote) >= 600, "those who look see it grow"
    assert len(written) <= 8, "two objects each time, and no more than 5 % of 100 s for it"
    log.write(Status.SUCCEEDED)
    assert lines_in(remote) == 1000


@pytest.mark.parametrize("status", [Status.FAILED, Status.INTERRUPTED, Status.RUNNING])
def test_whatever_is_recorded_of_a_trial_its_lines_are_there_before(
    status: Status, remote: Sweep
) -> None:
    log = TrialRecord(remote, remote.trials[0])
    for step in range(1, 4):
        log.report({"step": float(step)})
    assert lines_in(remote) == 1
    log.write(status)
    assert lines_in(remote) == 3


def test_a_log_that_goes_on_from_a_checkpoint_has_its_lines_at_once(remote: Sweep) -> None:
    log = TrialRecord(remote, remote.trials[0])
    for step in range(1, 4):
        log.report({"step": float(step)})
    log.restart(2, log.metrics, 9.0)
    assert lines_in(remote) == 2
    assert read_document(remote, remote.trials[0])["step"] == 1.0
    log.write(Status.RUNNING)
    assert read_document(remote, remote.trials[0])["step"] == 2.0
