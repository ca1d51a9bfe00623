"""A sweep that changed under the same name: what is another, and which field made it so."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefsweep.orchestrator.planning.changes import PLAN, changes, plan_document
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.sweeps import identity
from tests.integration.small import small_sweep

GRID = "grid=[{{loss_type: {losses}, beta: {betas}, learning_rate: 1e-3}}]"


def recorded(sweep: Sweep) -> Sweep:
    sweep.store.write_json(sweep.store.sweep("small", PLAN), plan_document(sweep))
    return sweep


@pytest.fixture
def before(tmp_path: Path) -> Sweep:
    return recorded(small_sweep(tmp_path))


def test_without_a_last_run_and_without_a_change_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert changes(small_sweep(tmp_path)) == []
    recorded(small_sweep(tmp_path))
    assert changes(small_sweep(tmp_path)) == []
    assert changes(small_sweep(tmp_path, "resources.threads_per_worker=2", "name=small")) == []


@pytest.mark.parametrize(
    ("override", "lines"),
    [
        (
            "generation.temperature=0.5",
            [
                "completions: will be rebuilt, because generation.temperature is 0.5, it was",
                "scores: will be rebuilt, because completions changed",
                "pairs: will be rebuilt, because scores changed",
                "reference: will be rebuilt, because pairs changed",
                "trials: will be rebuilt, because reference changed",
            ],
        ),
        (
            "pairs.min_margin=0.25",
            [
                "pairs: will be rebuilt, because pairs.min_margin is 0.25, it was 0.0",
                "reference: will be rebuilt, because pairs changed",
                "trials: will be rebuilt, because reference changed",
            ],
        ),
        (
            "training.max_steps=6",
            ["trials: will be rebuilt, because training.max_steps is 6, it was 4"],
        ),
        (
            "prompts.num_eval=5",
            [
                "eval_prompts: will be rebuilt, because prompts.num_eval is 5, it was 4",
                "evaluation: will be repeated, because eval_prompts changed",
            ],
        ),
        (
            "evaluation.num_samples=2",
            ["evaluation: will be repeated, because evaluation.num_samples is 2, it was 1"],
        ),
    ],
)
def test_the_field_that_changed_is_named_and_what_follows_from_it(
    before: Sweep, tmp_path: Path, override: str, lines: list[str]
) -> None:
    found = changes(small_sweep(tmp_path, override))
    assert len(found) == len(lines)
    for line, beginning in zip(found, lines, strict=True):
        assert line.startswith(beginning)


@pytest.mark.parametrize(
    ("inputs", "line"),
    [
        ({"policy": "other"}, "policy: will be rebuilt, because the model's weights changed"),
        ({"reward": "other"}, "reward: will be rebuilt, because the model's weights, or the file"),
        ({"prompts": "other"}, "prompts: will be rebuilt, because the content of its file or"),
        (
            {"quarantined": {"scores": ["p"]}},
            "scores: will be rebuilt, because the quarantined prompts changed",
        ),
    ],
)
def test_changed_content_outside_the_spec_is_named(
    before: Sweep, inputs: dict[str, Any], line: str
) -> None:
    now = Sweep(before.spec, replace(before.inputs, **inputs), before.storage)
    assert [found for found in changes(now) if found.startswith(line)]


def test_new_code_is_named(before: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    was = identity.STAGE_VERSIONS["pairs"]
    versions = {**identity.STAGE_VERSIONS, "pairs": 99}
    monkeypatch.setattr(identity, "STAGE_VERSIONS", versions)
    monkeypatch.setattr("prefsweep.orchestrator.planning.changes.STAGE_VERSIONS", versions)
    now = Sweep(before.spec, before.inputs, before.storage)
    line = f"pairs: will be rebuilt, because its code is version 99, it was {was}"
    assert line in changes(now)


def test_points_of_the_grid_that_come_and_go_are_named(tmp_path: Path) -> None:
    recorded(small_sweep(tmp_path, GRID.format(losses="[sigmoid, hinge]", betas="[0.1]")))
    now = small_sweep(tmp_path, GRID.format(losses="[sigmoid]", betas="[0.1, 0.5]"))
    added, gone = changes(now)
    assert added == "grid: 1 new points: sigmoid-beta0.5"
    assert gone.startswith("grid: 1 points removed: hinge-beta0.1; their results stay")
    many = small_sweep(tmp_path, GRID.format(losses="[sigmoid, hinge]", betas="[1, 2, 3, 4]"))
    assert "and 3 more" in changes(many)[0]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"stages": 1}', b'{"stages": {}}', b"\xff"])
def test_a_plan_that_cannot_be_read_is_told_or_is_none(before: Sweep, data: bytes) -> None:
    before.store.write(before.store.sweep("small", PLAN), data)
    told = changes(before)
    assert told == [] or "cannot be read" in told[0]
