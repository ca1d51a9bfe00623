"""Prompts that end their worker: found by halves, left out, and never mixed in silently."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from prefsweep.orchestrator.execution.bisection import LOADING, MAX_LONE_DEATHS, Bisection
from prefsweep.orchestrator.execution.scheduler import MAX_DEATHS, Pool, PromptSubset, ShardFlow
from prefsweep.orchestrator.state.quarantine import (
    num_quarantined,
    quarantine,
    with_recorded_quarantine,
    without_quarantine,
)
from prefsweep.orchestrator.state.sweep import Sweep, open_sweep, spec_document
from prefsweep.orchestrator.store.store import new_manifest
from prefsweep.orchestrator.tasks.evaluation import EvaluateUntrained
from prefsweep.orchestrator.tasks.shards import Generate, Reference, Score
from prefsweep.sweeps.errors import StageError
from tests.integration.small import small_sweep

PROMPTS = [f"p{number}" for number in range(16)]


def search(killers: set[str], prompts: Sequence[str] = PROMPTS) -> tuple[list[str], int]:
    """The guilty that a bisection finds, and how many workers it costs."""
    bisection, num_deaths = Bisection(prompts), 0
    while not bisection.is_over:
        for group in bisection.take_waiting():
            if killers & set(group):
                bisection.died(group)
                num_deaths += 1
            else:
                bisection.survived(group)
    return bisection.guilty, num_deaths


@pytest.mark.parametrize("killers", [{"p0"}, {"p15"}, {"p3", "p4"}, {"p0", "p9", "p15"}, set()])
def test_exactly_the_prompts_that_kill_are_found(killers: set[str]) -> None:
    guilty, num_deaths = search(killers)
    assert set(guilty) == killers
    assert num_deaths <= len(killers) * (3 + MAX_LONE_DEATHS)  # halves of 8, 4, 2, then alone
    assert len(guilty) == len(set(guilty))


def test_one_death_alone_is_no_proof() -> None:
    bisection = Bisection(["a"])
    for group in (LOADING, ("a",)):
        assert bisection.take_waiting() == [group]
        bisection.died(group)
        assert bisection.take_waiting() == [group]
        bisection.survived(group)
    assert bisection.is_over and bisection.guilty == [] and not bisection.ends_at_loading


@dataclass
class FakeStage:
    """A stage whose shards are done when `made` says so."""

    name: str
    sweep: Any
    made: set[int]
    loads: str = "policy.model=large"

    def prompt_ids(self, index: int) -> list[str]:
        return PROMPTS[index * 4 : index * 4 + 4]

    def load(self) -> None:
        """Nothing: nothing is really worked on."""

    def work(self, worker: Any, index: int, only: Sequence[str] | None = None) -> list[Any]:
        raise AssertionError("the test says who dies")


def drive(
    monkeypatch: pytest.MonkeyPatch,
    killers: dict[str, set[str]],
    *,
    together: bool = False,
    cannot_load: str = "",
) -> tuple[ShardFlow, list[FakeStage], int]:
    """Send four shards of four prompts through two stages whose workers die of `killers`.

    `together`: they die only of a whole shard that has one. `cannot_load`: a stage that ends
    whoever begins with it. Returns the deaths, too.
    """
    stages = [FakeStage("completions", None, set()), FakeStage("scores", None, set())]
    monkeypatch.setattr(
        "prefsweep.orchestrator.execution.scheduler.is_missing",
        lambda stage, index: index not in stage.made,
    )
    pools = [Pool(stage.name, lambda host, item: None, lambda: 1, 0.0) for stage in stages]
    flow = ShardFlow(pools, stages)  # pyright: ignore[reportArgumentType]
    for shard in range(4):
        flow.enter(0, shard)
    num_deaths = 0
    while any(pool.waiting for pool in pools):
        for position, pool in enumerate(pools):
            if not pool.waiting:
                continue
            item = pool.waiting.popleft()
            is_part = isinstance(item, PromptSubset)
            prompts = item.prompt_ids if is_part else stages[position].prompt_ids(item)
            is_fatal = killers.get(pool.name, set()) & set(prompts) and not (together and is_part)
            if is_fatal or pool.name == cannot_load:
                num_deaths += 1
                flow.search.died(position, item, RuntimeError("killed"))
                continue
            if not is_part:
                stages[position].made.add(item)
            flow.done(position, item)
    return flow, stages, num_deaths


def test_a_shard_that_kills_is_looked_into_and_the_rest_completes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killers = {"completions": {"p5"}, "scores": {"p12", "p15"}}
    flow, stages, num_deaths = drive(monkeypatch, killers)
    assert {stage: set(found) for stage, found in flow.search.killers.items()} == killers
    assert stages[0].made == {0, 2, 3}
    assert stages[1].made == {0, 2}
    assert num_deaths <= 2 * MAX_DEATHS + 3 * (1 + MAX_LONE_DEATHS)


def test_a_shard_that_kills_though_no_prompt_does_ends_the_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(StageError, match=r"completions: shard 1 killed 3 workers.*killed"):
        drive(monkeypatch, {"completions": {"p5"}}, together=True)


@pytest.mark.parametrize("stage", ["completions", "scores"])
def test_a_model_that_ends_whoever_loads_it_makes_no_prompt_guilty(
    monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    with pytest.raises(
        StageError, match=rf"{stage}: .* while they load policy.model=large.*killed"
    ):
        drive(monkeypatch, {}, cannot_load=stage)


def test_work_whose_prompts_can_be_tried_names_what_it_loads(tmp_path: Path) -> None:
    reward = "reward={type: callable, function: 'math:hypot'}"
    sweep, mine = small_sweep(tmp_path), small_sweep(tmp_path, reward)
    policy = "policy.model=builtin:tiny-gpt2"
    assert Generate(sweep).loads == Reference(sweep).loads == policy
    assert Score(sweep).loads == "reward.model=builtin:tiny-classifier"
    assert Score(mine).loads == "reward.function=math:hypot"
    assert EvaluateUntrained(mine).loads == f"{policy} and reward.function=math:hypot"


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return small_sweep(tmp_path)


def test_the_fingerprints_say_what_was_left_out_from_its_stage_on(sweep: Sweep) -> None:
    without = replace(sweep.inputs, quarantined={"scores": ["b", "a"]})
    other = Sweep(sweep.spec, without, sweep.storage)
    assert other.path("completions") == sweep.path("completions")
    for stage in ("scores", "pairs", "reference"):
        assert other.path(stage) != sweep.path(stage)
    assert {t.trial_id for t in other.trials}.isdisjoint({t.trial_id for t in sweep.trials})
    assert other.fingerprints.parts["scores"]["quarantined"] == ["a", "b"]
    assert "quarantined" not in sweep.fingerprints.parts["scores"]


def test_held_out_prompts_that_kill_change_evaluations_alone(sweep: Sweep) -> None:
    after = quarantine(sweep, {"untrained": ["b", "a"]})
    assert after.trials == sweep.trials
    assert all(after.path(stage) == sweep.path(stage) for stage in sweep.stages)
    for trial_id in ("untrained", sweep.trials[0].trial_id):
        assert after.evaluation_path(trial_id) != sweep.evaluation_path(trial_id)
    record(after)
    assert with_recorded_quarantine(sweep) == after


def test_finished_shards_are_taken_over(sweep: Sweep, tmp_path: Path) -> None:
    file = tmp_path / "shard"
    for stage in (Generate(sweep), Score(sweep)):
        for index in (0, 3):
            file.write_text(f"{stage.name} {index}")
            sweep.store.publish_shard(
                sweep.shard(stage.name, index), file, new_manifest("f", 1, 0.0)
            )
    after = quarantine(sweep, {"completions": ["p"]})
    after = quarantine(after, {"completions": ["o"], "scores": ["q"]})
    assert after.inputs.quarantined == {"completions": ["o", "p"], "scores": ["q"]}
    assert num_quarantined(after) == 3
    for stage in (Generate(after), Score(after)):
        there = [
            sweep.store.shard_manifest(after.shard(stage.name, i)) is not None for i in range(4)
        ]
        assert there == [True, False, False, True]
        folder = sweep.store.fetch_shard(after.shard(stage.name, 3), tmp_path)
        assert folder.read_text() == f"{stage.name} 3"


def record(sweep: Sweep) -> None:
    path = sweep.store.sweep(sweep.spec.name, "spec.json")
    sweep.store.write_json(path, spec_document(sweep))


def test_a_later_run_leaves_the_same_prompts_out_until_it_restarts_what_failed(
    sweep: Sweep, tmp_path: Path
) -> None:
    assert with_recorded_quarantine(sweep) == sweep
    after = quarantine(sweep, {"scores": ["p"]})
    record(after)
    assert with_recorded_quarantine(sweep).trials == after.trials
    assert open_sweep("small", sweep.storage).trials == after.trials
    assert without_quarantine(after).trials == sweep.trials
    record(without_quarantine(after))  # a run that restarted what failed, and met nothing
    assert with_recorded_quarantine(after) == sweep


@pytest.mark.parametrize(
    ("override", "num"), [("generation.seed=7", 0), ("pairs.min_margin=0.1", 1), ("seeds=[4]", 1)]
)
def test_only_where_the_same_would_be_met_again(
    sweep: Sweep, tmp_path: Path, override: str, num: int
) -> None:
    record(quarantine(sweep, {"scores": ["p"]}))
    assert num_quarantined(with_recorded_quarantine(small_sweep(tmp_path, override))) == num


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"inputs": {"quarantined": 1}}'])
def test_a_record_that_cannot_be_read_leaves_nothing_out(sweep: Sweep, data: bytes) -> None:
    sweep.store.write(sweep.store.sweep("small", "spec.json"), data)
    assert num_quarantined(with_recorded_quarantine(sweep)) == 0
