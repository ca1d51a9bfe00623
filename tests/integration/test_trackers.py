"""A sweep's TensorBoard files, from a run that is read again by another driver."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from prefsweep.orchestrator.results.results import read_results
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.tracking.rows import STEP, history_row
from prefsweep.orchestrator.tracking.watcher import TrialWatch

from .small import small_sweep


def test_tensorboard_has_every_line_of_metrics_jsonl_once(
    finished_sweep: Sweep, tmp_path: Path
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shutil.copytree(finished_sweep.storage, tmp_path / "store")
    sweep = small_sweep(tmp_path / "store", "tracking.tensorboard=true")
    assert sweep.trials == finished_sweep.trials  # trackers are in no identity
    for _ in range(2):
        with TrialWatch(sweep, sweep.trials):
            pass
    for result in read_results(sweep).results[1:]:
        folder = tmp_path / "store" / "sweeps" / "small" / "tensorboard" / result.name
        read = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        tags = [tag for tag in read.Tags()["scalars"] if not tag.startswith("final/")]
        found = Counter((tag, event.step) for tag in tags for event in read.Scalars(tag))
        rows = list(map(history_row, result.history))
        assert found == Counter((tag, row[STEP]) for row in rows for tag in row if tag != STEP)
        [reward] = read.Scalars("final/reward_mean")
        assert reward.value == pytest.approx(result.metrics["reward_mean"])
