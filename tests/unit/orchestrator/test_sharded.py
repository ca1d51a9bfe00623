"""Shards of a stage that another run works on, too: what is there is taken."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.tasks import shards
from prefsweep.orchestrator.tasks.shards import Generate, finish_shards, is_missing, run_shard
from prefsweep.sweeps.errors import DamagedError
from prefsweep.sweeps.records import Completion
from tests.integration.small import small_sweep

ROWS = [Completion("0" * 16, 0, "a prompt", "a text", "eos")]


@dataclass(frozen=True)
class Told(Generate):
    """Makes the same rows of every shard; none may be asked for where that would be too much."""

    may_work: bool = True

    def work(self, worker: Any, index: int, only: Sequence[str] | None = None) -> list[Completion]:
        assert self.may_work
        return ROWS


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return small_sweep(tmp_path)


def test_a_shard_that_another_run_has_made_is_not_made_again(sweep: Sweep) -> None:
    assert is_missing(Told(sweep), 0)
    run_shard(Told(sweep), None, 0)
    assert not is_missing(Told(sweep), 0) and is_missing(Told(sweep), 1)
    run_shard(Told(sweep, may_work=False), None, 0)


def test_no_shard_of_a_stage_that_another_run_has_finished_is_made(sweep: Sweep) -> None:
    stage = Told(sweep)
    run_shard(stage, None, 0)
    finish_shards(stage, sweep, 1, 0.0)
    sweep.store.delete(f"{sweep.shard(stage.name, 0)}.json")
    run_shard(Told(sweep, may_work=False), None, 0)


def test_a_stage_is_finished_once_and_only_with_all_its_shards(sweep: Sweep) -> None:
    stage = Told(sweep)
    run_shard(stage, None, 0)
    with pytest.raises(DamagedError, match=r"shard-00001\.parquet is missing"):
        finish_shards(stage, sweep, 2, 0.0)
    run_shard(stage, None, 1)
    finish_shards(stage, sweep, 2, 1.0)
    before = sweep.store.manifest(sweep.path("completions"))
    assert before is not None and before.rows == 2
    sweep.store.delete(f"{sweep.shard(stage.name, 0)}.json")
    finish_shards(stage, sweep, 2, 2.0)
    assert sweep.store.manifest(sweep.path("completions")) == before


def test_a_shard_made_by_two_at_once_is_that_of_the_first(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, other = Told(sweep), [Completion("1" * 16, 0, "a prompt", "another text", "eos")]
    publish = shards.publish_shard

    def late(*args: Any) -> None:
        publish(stage, Completion, other, 0, time.monotonic())  # the other run's
        publish(*args)

    monkeypatch.setattr(shards, "publish_shard", late)
    run_shard(stage, None, 0)
    with sweep.store.staging() as folder:
        local = sweep.store.fetch_shard(sweep.shard(stage.name, 0), folder)
        assert shards.tables.read_records(Completion, [local]) == other


@dataclass(frozen=True)
class Noting(Told):
    """Has something to tell of every shard."""

    def notes(self, worker: Any, index: int, records: Sequence[Any]) -> dict[str, float]:
        return {"noted: texts that are odd": 1.0 + index, f"shard {index}": 1.0}


def test_what_is_noted_of_shards_is_added_up(sweep: Sweep) -> None:
    for index in range(2):
        run_shard(Noting(sweep), None, index)
    finish_shards(Noting(sweep), sweep, 2, 0.0, {"seconds": 5.0})
    manifest = sweep.store.manifest(sweep.path("completions"))
    assert manifest is not None
    assert manifest.notes == {
        "noted: texts that are odd": 3.0,
        "shard 0": 1.0,
        "shard 1": 1.0,
        "seconds": 5.0,
    }
