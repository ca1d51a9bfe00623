"""A sweep that grows runs only what is new; one that shrinks keeps its results in the store."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from prefsweep.orchestrator.execution.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.state.sweep import Sweep, Trial
from prefsweep.orchestrator.tasks.shards import ShardStage
from prefsweep.orchestrator.tasks.stages import Task
from prefsweep.sweeps.records import Status

from .small import small_sweep, table

GRID = "grid=[{{loss_type: {losses}, beta: {betas}, learning_rate: 1e-3}}]"


class Counting(InlineCluster):
    """Says what it was asked to run."""

    def __init__(self, sweep: Sweep) -> None:
        super().__init__(sweep.spec.resources)
        self.asked: list[str] = []

    def run_tasks(self, tasks: Sequence[Task]) -> dict[str, list[str]]:
        self.asked += [task.name for task in tasks]
        return super().run_tasks(tasks)

    def run_shards(self, stages: Sequence[ShardStage], num_shards: int) -> dict[str, list[str]]:
        self.asked += [stage.name for stage in stages]
        return super().run_shards(stages, num_shards)

    def run_trials(self, sweep: Sweep, trials: Sequence[Trial]) -> None:
        self.asked += [trial.name for trial in trials]
        super().run_trials(sweep, trials)


def run(sweep: Sweep) -> list[str]:
    cluster = Counting(sweep)
    results = run_sweep(sweep, lambda: cluster)
    assert {result.status for result in results} == {Status.SUCCEEDED}
    assert len(results) == 1 + len(sweep.trials)
    return cluster.asked


def weight_files(sweep: Sweep) -> dict[Path, int]:
    """When the weights of all trials in the store were written."""
    folder = Path(sweep.store.display("trials"))
    return {file: file.stat().st_mtime_ns for file in folder.glob("*/weights/*")}


def test_more_points_seeds_and_held_out_prompts_run_only_what_is_new(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "prefsweep")
    first = small_sweep(tmp_path)
    run(first)
    before, rows = weight_files(first), table(first)

    longer = small_sweep(tmp_path, GRID.format(losses="[sigmoid, hinge]", betas="[0.1, 0.5]"))
    assert sorted(run(longer)) == ["hinge-beta0.5", "sigmoid-beta0.5"]
    assert "grid: 2 new points: sigmoid-beta0.5, hinge-beta0.5" in caplog.text

    seeds = small_sweep(tmp_path, "seeds=[0, 1]")
    assert sorted(run(seeds)) == ["hinge-beta0.1-seed1", "sigmoid-beta0.1-seed1"]
    assert "grid: 2 points removed: sigmoid-beta0.5, hinge-beta0.5" in caplog.text
    assert len(table(seeds)) == 5

    prompts = small_sweep(tmp_path, "prompts.num_eval=6")
    caplog.clear()
    asked = run(prompts)
    assert asked == ["untrained", "sigmoid-beta0.1", "hinge-beta0.1"]  # evaluated, not trained
    assert "evaluation: will be repeated, because eval_prompts changed" in caplog.text
    after = weight_files(first)
    assert {file: after[file] for file in before} == before
    assert len(after) == 3 * len(before)  # two more points and two more seeds

    assert run(first) == []  # what was there is found, and the report is as it was
    assert table(first) == rows
