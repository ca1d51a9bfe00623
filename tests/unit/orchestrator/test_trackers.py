"""TensorBoard and MLflow, read back by their own libraries, and what a tracker's errors do."""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from prefsweep.orchestrator.planning.tracker_checks import trackers
from prefsweep.orchestrator.tracking.mirrors import QueuedMirror, Tracker
from prefsweep.orchestrator.tracking.mlflow import Mlflow
from prefsweep.orchestrator.tracking.rows import STEP, history_row
from prefsweep.orchestrator.tracking.tensorboard import EVENTS, TensorBoard
from prefsweep.orchestrator.tracking.wandb_files import MAX_NAME, shortened
from prefsweep.sweeps.records import Status, SweepResults, TrialResult
from prefsweep.sweeps.spec import MlflowSpec, TrackingSpec

RECORDS = [
    {"step": 2.0, "loss": 0.75, "rewards/margins": 0.5},
    {"step": 4.0, "loss": 0.5, "rewards/margins": 1.0},
    {"step": 4.0, "eval/kl": 0.25},
    {"step": 6.0, "loss": 0.25, "rewards/margins": None},
]
LOGGED = Counter(
    (name, int(row[STEP]), value)
    for row in map(history_row, RECORDS)
    for name, value in row.items()
    if name != STEP
)
FINAL = Counter({("final/reward_mean", 6, 1.5): 1, ("final/train_seconds", 6, 8.0): 1})
RESULT = TrialResult(
    "abc", "hinge+sft-beta0.1", None, Status.SUCCEEDED, {"reward_mean": 1.5}, train_seconds=8.0
)
NO_RESULTS = SweepResults("small", {}, [], [], {})


def record(tracker: Tracker, records: list[dict[str, Any]]) -> None:
    tracker.start_trial("abc", RESULT.name, {"beta": 0.1, "api_key": "hidden"})
    for each in records:
        tracker.log("abc", history_row(each))


def killed_and_resumed(make: Any) -> None:
    """Log half of the records and die; a second driver starts from the first record again."""
    record(make(), RECORDS[:3])
    tracker = make()
    record(tracker, RECORDS)
    tracker.finish_trial(RESULT)
    tracker.close()


def events(folder: Path) -> Counter[tuple[str, int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return Counter(
        (tag, event.step, event.value)
        for tag in read.Tags()["scalars"]
        for event in read.Scalars(tag)
    )


def test_tensorboard_has_every_metric_once_after_a_kill_and_a_resume(tmp_path: Path) -> None:
    killed_and_resumed(lambda: TensorBoard(tmp_path))
    assert events(tmp_path / "tensorboard" / RESULT.name) == LOGGED + FINAL
    assert b"hidden" not in b"".join(file.read_bytes() for file in tmp_path.rglob(EVENTS))


def test_tensorboard_deletes_and_writes_nothing_behind_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "events.out.tfevents.1").touch()
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / RESULT.name).symlink_to(elsewhere)
    with pytest.raises(OSError, match="is a link to another folder"):
        record(TensorBoard(tmp_path), RECORDS)
    assert [file.name for file in elsewhere.iterdir()] == ["events.out.tfevents.1"]


@pytest.mark.filterwarnings("default")  # of MLflow's own imports and file store
def test_mlflow_has_every_metric_once_after_a_kill_and_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    killed_and_resumed(lambda: Mlflow(MlflowSpec(), "small"))
    client = tracking.MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("prefsweep").experiment_id])
    found = Counter(
        (name, metric.step, metric.value)
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    )
    assert found == LOGGED + FINAL
    assert (run.info.run_name, run.info.status) == (RESULT.name, "FINISHED")
    assert run.data.params == {"beta": "0.1", "api_key": "***"}


class Failing:
    """A tracker whose server is away."""

    title = "Failing"

    def __init__(self) -> None:
        self.calls: list[str] = []

    def start_trial(self, trial_id: str, name: str, config: Mapping[str, object]) -> None:
        self.calls.append(name)

    def log(self, trial_id: str, row: Mapping[str, float]) -> None:
        raise ConnectionError("no route to host")

    def finish_trial(self, result: TrialResult) -> None:
        self.calls.append("finished")

    def close(self) -> None:
        self.calls.append("closed")


def test_a_tracker_that_fails_is_off_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Failing()
    mirror = QueuedMirror(lambda: tracker, tracker.title)
    with caplog.at_level(logging.WARNING):
        mirror.trial_started("abc", "one", {})
        for each in RECORDS:
            mirror.log("abc", each)
        mirror.trial_finished(RESULT)
        mirror.finish(NO_RESULTS)
    assert tracker.calls == ["one"]
    [warning] = [message.getMessage() for message in caplog.records]
    assert warning.startswith("Failing failed (ConnectionError: no route to host) and is off")


def test_a_library_that_is_missing_is_a_warning_too(caplog: pytest.LogCaptureFixture) -> None:
    def make() -> Tracker:
        raise ModuleNotFoundError("No module named 'mlflow'")

    mirror = QueuedMirror(make, "MLflow")
    mirror.trial_started("abc", "one", {})
    mirror.finish(NO_RESULTS)
    assert "MLflow failed (ModuleNotFoundError: No module named 'mlflow')" in caplog.text


def test_a_run_without_trials_starts_no_tracker() -> None:
    def make() -> Tracker:
        raise AssertionError("started")

    QueuedMirror(make, "MLflow").finish(NO_RESULTS)


def test_long_names_are_shortened_with_a_hash_and_stay_distinct() -> None:
    names = [f"{'sigmoid+' * 30}{end}" for end in "ab"]
    short = [shortened(name) for name in names]
    assert len(set(short)) == 2 and {len(name) for name in short} == {MAX_NAME}
    assert all(name.startswith("sigmoid+sigmoid") for name in short)
    assert shortened("hinge-beta0.1") == "hinge-beta0.1"


def test_doctor_says_which_trackers_have_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = TrackingSpec(tensorboard=True, mlflow=MlflowSpec())
    monkeypatch.setattr(
        "prefsweep.orchestrator.planning.tracker_checks.util.find_spec",
        lambda name: None if name == "mlflow" else name,
    )
    found = [(line.check, line.level, line.remedy) for line in trackers(spec)]
    assert found == [("TensorBoard", "ok", ""), ("MLflow", "warning", "pip install mlflow")]
    assert list(trackers(TrackingSpec())) == []
