"""Which trials share a group, how large groups are, and how large a probe says they may be."""

import json
from pathlib import Path

import pytest

from prefsweep.orchestrator.execution.grouping import ALONE, Grouping, make_groups
from prefsweep.orchestrator.execution.sizing import group_size
from prefsweep.orchestrator.state.sweep import Sweep, Trial
from prefsweep.orchestrator.state.trial_record import TrialRecord
from prefsweep.orchestrator.store.store import new_manifest
from prefsweep.sweeps.fusing import cut
from prefsweep.sweeps.records import Status
from prefsweep.workers.probe import GroupStep
from tests.integration.small import small_sweep

LORA = "training.lora={r: 4}"


def sweep_of(storage: Path, num: int, *overrides: str) -> Sweep:
    betas = [round(0.1 * (i + 1), 1) for i in range(num)]
    return small_sweep(storage, LORA, f"grid=[{{beta: {betas}, learning_rate: 1e-3}}]", *overrides)


def sizes(sweep: Sweep, largest: int, places: int = 1) -> list[int]:
    groups = make_groups(sweep, sweep.trials, Grouping(largest, places))
    assert [t for group in groups for t in group] == sweep.trials, "each once, in order"
    return [len(group) for group in groups]


@pytest.mark.parametrize(
    ("num", "largest", "places", "expected"),
    [
        (18, 18, 8, [3, 3, 2, 2, 2, 2, 2, 2]),  # every GPU has one first
        (18, 8, 1, [6, 6, 6]),
        (18, 18, 1, [18]),
        (8, 4, 2, [4, 4]),
        (3, 4, 8, [1, 1, 1]),
        (5, 2, 1, [2, 2, 1]),
    ],
)
def test_every_place_gets_a_group_before_any_gets_larger(
    tmp_path: Path, num: int, largest: int, places: int, expected: list[int]
) -> None:
    assert sizes(sweep_of(tmp_path, num), largest, places) == expected


def test_alone_is_alone(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, 3)
    assert make_groups(sweep, sweep.trials, ALONE) == [[trial] for trial in sweep.trials]


def test_trials_of_other_seeds_and_losses_that_mix_rows_have_groups_of_their_own(
    tmp_path: Path,
) -> None:
    grid = "grid=[{loss_type: [sigmoid, aot, hinge, sft], beta: 0.1, learning_rate: 1e-3}]"
    sweep = small_sweep(tmp_path, LORA, grid, "seeds=[0, 1]")
    groups = make_groups(sweep, sweep.trials, Grouping(8))
    names = [sorted((t.spec.loss_type, t.spec.seed) for t in group) for group in groups]
    assert sorted(names) == [
        [("aot", 0), ("sft", 0)],
        [("aot", 1), ("sft", 1)],
        [("hinge", 0), ("sigmoid", 0)],
        [("hinge", 1), ("sigmoid", 1)],
    ]


def publish(sweep: Sweep, trial: Trial, part: str, rows: int, **state: object) -> None:
    with sweep.store.staging() as folder:
        (folder / "it").mkdir()
        (folder / "it" / "trainer_state.json").write_text(json.dumps(state))
        manifest = new_manifest(trial.trial_id, rows, 0.0)
        sweep.store.publish(sweep.store.trial(trial.trial_id, part), folder / "it", manifest)


def test_trials_are_grouped_by_where_they_stand(tmp_path: Path) -> None:
    """Trained; begun alone; in a group, at two steps; not begun; with a halved batch."""
    sweep = sweep_of(tmp_path, 9)
    trained, solo, a, b, c, d, new, other, halved = sweep.trials
    publish(sweep, trained, "weights", 1)
    publish(sweep, solo, "checkpoints/step-000004", 4)
    for trial, step in ((a, 4), (b, 6), (c, 4), (d, 6)):
        publish(sweep, trial, f"checkpoints/step-{step:06d}", step, group=4)
    state = TrialRecord(sweep, halved)
    state.halvings = 1
    state.write(Status.PENDING)
    groups = make_groups(sweep, sweep.trials, Grouping(8))
    assert groups == [[trained], [solo], [a, c], [b, d], [new, other], [halved]]


def test_a_trial_that_did_not_fit_keeps_its_group_small(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, 7)
    for trial, limit in ((sweep.trials[1], 2), (sweep.trials[6], 1)):
        state = TrialRecord(sweep, trial)
        state.largest_group = limit
        state.write(Status.PENDING)
    assert sizes(sweep, 8) == [2, 4, 1]


def test_a_cut_keeps_the_limit_of_every_member() -> None:
    assert cut("abcde", [0, 0, 2, 0, 0]) == [["a", "b"], ["c", "d"], ["e"]]
    assert cut("abcd", [1, 1, 0, 0]) == [["a"], ["b"], ["c", "d"]]
    assert cut("abc", [0, 0, 0]) == [["a", "b", "c"]]
    assert cut("", []) == []


GIB = 2**30


@pytest.mark.parametrize(
    ("steps", "free_gib", "size"),
    [
        ([(1, 0.1, 2), (2, 0.1, 3), (4, 0.12, 5), (8, 0.2, 9)], 80, 8),
        ([(1, 0.1, 2), (2, 0.1, 3), (4, 0.12, 5), (8, 0.2, 9)], 10, 4),  # 9 with room do not fit
        ([(1, 0.4, 20), (2, 0.78, 35)], 80, 1),  # compute bound: 3% are not worth it
        ([(1, 0.4, 90)], 80, 1),
        ([], 80, 1),  # the model cannot be trained so
    ],
)
def test_the_size_of_groups_is_the_fastest_that_fits(
    steps: list[tuple[int, float, int]], free_gib: int, size: int
) -> None:
    found = [GroupStep(num, seconds, peak * GIB) for num, seconds, peak in steps]
    assert group_size(found, free_gib * GIB) == size
