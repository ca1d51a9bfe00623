"""status.json and metrics.jsonl are read back whatever has become of them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefsweep.orchestrator.recovery.trial_log import TrialLog, mark, parse_metrics, read_document
from prefsweep.orchestrator.watching.status import trial_status
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
    TrialLog(sweep, trial).begin(0)
    assert trial_status(sweep, trial).attempts == 1


def test_attempts_and_halvings_are_remembered_and_failures_in_a_row_end_with_progress(
    tmp_path: Path,
) -> None:
    sweep = small_sweep(tmp_path)
    trial = sweep.trials[0]
    for reached, fruitless in ((0, 1), (0, 2), (4, 1), (4, 2)):
        state = TrialLog(sweep, trial)
        state.halvings += 1
        state.begin(reached)
        assert state.fruitless == fruitless
    mark(sweep, trial, Status.FAILED, Failure("transient", "gone", log_path="trial.log"))
    mark(sweep, trial, Status.PENDING)
    found = read_document(sweep, trial)
    assert (found["attempts"], found["halvings"], found["fruitless"]) == (4, 4, 0)
    assert found["failure"] is None and found["last_failure"]["log_path"] == "trial.log"
