"""Trials that are trained as one: each ends as it does alone, whatever happens to one of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.state.trial_record import read_document, trial_status
from prefsweep.orchestrator.tasks import attempts
from prefsweep.orchestrator.tasks.attempts import WorkerSlot
from prefsweep.orchestrator.tasks.cache import WorkerCache
from prefsweep.orchestrator.tasks.trial_group import run_group
from prefsweep.sweeps.errors import StoreError
from prefsweep.sweeps.records import Status
from prefsweep.workers import fused
from prefsweep.workers.group_loss import GroupLoss
from prefsweep.workers.solo import Solo

from ...conftest import BuildOnce
from ..small import run_inline, small_sweep
from .in_process import OVERRIDES as ALONE
from .in_process import raising

OVERRIDES = [
    *ALONE,
    "evaluation.eval_steps=6",
    "training.lora={r: 4}",
    "grid=[{loss_type: [sigmoid, hinge, ipo], beta: 0.1, learning_rate: 1e-3}, "
    "{f_divergence_type: forward_kl, beta: 0.5, learning_rate: 3e-4}]",
]
FUSED = "training.fuse=4"


def copy_of(data: Path, folder: Path, *overrides: str) -> Sweep:
    shutil.copytree(data, folder / "store")
    return small_sweep(folder / "store", *OVERRIDES, *overrides)


@pytest.fixture(scope="module")
def alone(data: Path, build_once: BuildOnce) -> Sweep:
    """Four LoRA trials, each trained alone."""
    folder = build_once("four-alone", lambda folder: run_inline(copy_of(data, folder)))
    return small_sweep(folder / "store", *OVERRIDES)


@pytest.fixture(scope="module")
def together(data: Path, build_once: BuildOnce) -> Sweep:
    """The same four as one group that nothing disturbs."""
    folder = build_once("four-fused", lambda folder: run_inline(copy_of(data, folder, FUSED)))
    return small_sweep(folder / "store", *OVERRIDES, FUSED)


@pytest.fixture
def sweep(data: Path, tmp_path: Path) -> Sweep:
    return copy_of(data, tmp_path, FUSED)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> "Steps":
    return Steps(monkeypatch)


class Steps:
    """The steps that groups train, with the number of their trials, and what happens before one."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[int, int]] = []
        self.act: Callable[[int, int], None] = lambda step, num: None
        plain = fused._Group._train_step

        def faulty(group: Any, batch: Any) -> None:
            self.seen.append((group.step + 1, len(group._solos)))
            self.act(*self.seen[-1])
            plain(group, batch)

        patch.setattr(fused._Group, "_train_step", faulty)


def adapter(sweep: Sweep, index: int) -> dict[str, torch.Tensor]:
    trial_id = sweep.trials[index].trial_id
    folder = Path(sweep.store.display(sweep.store.trial(trial_id, "weights")))
    return load_file(folder / "adapter_model.safetensors")


def lines(sweep: Sweep, index: int) -> list[dict[str, float]]:
    path = sweep.store.trial(sweep.trials[index].trial_id, "metrics.jsonl")
    return [json.loads(line) for line in (sweep.store.read(path) or b"").splitlines()]


def assert_same(sweep: Sweep, other: Sweep, index: int, tolerance: float) -> None:
    """Adapter, log and evaluation of a trial, to rounding; bit for bit at 0."""
    first, second = adapter(sweep, index), adapter(other, index)
    assert first.keys() == second.keys()
    assert max((first[k] - second[k]).abs().max().item() for k in first) <= tolerance
    for line, expected in zip(lines(sweep, index), lines(other, index), strict=True):
        assert line.keys() == expected.keys()
        assert line["step"] == expected["step"]
        if "loss" in line:
            assert line["loss"] == pytest.approx(expected["loss"], rel=tolerance, abs=tolerance)
    metrics = [trial_status(each, each.trials[index]).metrics for each in (sweep, other)]
    names = ("kl", "predictive_entropy", "reward_mean", "margin_test", "distinct_2")
    for name in names:
        assert metrics[0][name] == pytest.approx(metrics[1][name], rel=1e-3, abs=1e-5), name


def statuses(sweep: Sweep) -> list[Status]:
    return [trial_status(sweep, trial).status for trial in sweep.trials]


def note(sweep: Sweep, index: int) -> float | None:
    path = sweep.store.trial(sweep.trials[index].trial_id, "weights")
    manifest = sweep.store.manifest(path)
    assert manifest is not None
    return manifest.notes.get("group")


def test_fused_trials_have_the_losses_adapters_and_evaluations_of_trials_alone(
    together: Sweep, alone: Sweep
) -> None:
    assert [trial.trial_id for trial in together.trials] == [t.trial_id for t in alone.trials]
    assert statuses(together) == statuses(alone) == [Status.SUCCEEDED] * 4
    for index in range(4):
        assert_same(together, alone, index, 1e-5)
        assert (note(together, index), note(alone, index)) == (4.0, None)
        status = trial_status(together, together.trials[index])
        assert (status.attempts, status.halvings) == (1, 0)


def test_a_trial_that_is_not_finite_fails_and_the_others_numbers_do_not_change(
    sweep: Sweep, together: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = GroupLoss.__call__, list[Status]()

    def poisoned(self: Any, *args: Any) -> Any:
        losses, numbers = plain(self, *args)
        spoilt = torch.ones_like(losses)
        spoilt[1] = float("nan")
        seen.append(trial_status(sweep, sweep.trials[1]).status)
        return losses * spoilt, numbers

    monkeypatch.setattr(GroupLoss, "__call__", poisoned)
    run_inline(sweep)
    good, bad = Status.SUCCEEDED, Status.FAILED
    assert statuses(sweep) == [good, bad, good, good]
    assert seen == [Status.RUNNING] * 2 + [bad] * 7, "recorded at the next log step"
    failure = trial_status(sweep, sweep.trials[1]).failure
    assert failure is not None and failure.kind == "deterministic"
    assert "the loss is nan at step 1" in failure.message
    for index in (0, 2, 3):
        assert_same(sweep, together, index, 0)


def test_a_trial_whose_storage_fails_goes_on_from_its_checkpoint_and_the_others_undisturbed(
    sweep: Sweep, together: Sweep, monkeypatch: pytest.MonkeyPatch, steps: Steps
) -> None:
    plain, left = Solo.save, [1]

    def save(self: Any, step: int) -> None:
        if self._index == 2 and step == 4 and left:
            left.pop()
            raise StoreError("it cannot be written")
        plain(self, step)

    monkeypatch.setattr(Solo, "save", save)
    run_inline(sweep)
    assert statuses(sweep) == [Status.SUCCEEDED] * 4
    assert steps.seen == [(step, 4) for step in range(1, 10)] + [(s, 1) for s in range(3, 10)]
    attempts_had = [trial_status(sweep, trial).attempts for trial in sweep.trials]
    assert attempts_had == [1, 1, 2, 1]
    for index in range(4):
        assert_same(sweep, together, index, 1e-6 if index == 2 else 0)


def test_out_of_memory_halves_the_group_first_and_then_the_micro_batch(
    sweep: Sweep, together: Sweep, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four do not fit from step 6 on, nor two; one alone only in halves."""
    plain = fused._Group._losses

    def small_memory(self: Any, part: Any) -> Any:
        if self.step >= 5 and len(self._solos) * len(part["ref_chosen_logps"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(self, part)

    monkeypatch.setattr(fused._Group, "_losses", small_memory)
    run_inline(sweep)
    assert statuses(sweep) == [Status.SUCCEEDED] * 4
    sizes = [num for _, num in steps.seen]
    assert sizes == sorted(sizes, reverse=True) and set(sizes) == {4, 2, 1}
    assert {read_document(sweep, trial)["largest_group"] for trial in sweep.trials} == {1}
    assert all(trial_status(sweep, trial).halvings >= 1 for trial in sweep.trials)
    for index in range(4):
        assert_same(sweep, together, index, 1e-5)
        assert note(sweep, index) == 4.0, "its first steps were trained with others"


def test_an_error_of_the_group_is_found_to_be_one_trials_and_the_others_are_trained(
    sweep: Sweep, together: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = GroupLoss.__init__

    def broken(self: Any, trials: Any, device: Any) -> None:
        if any(trial.loss_type == "ipo" for trial in trials):
            raise ValueError("this loss cannot be computed")
        plain(self, trials, device)

    monkeypatch.setattr(GroupLoss, "__init__", broken)
    monkeypatch.setattr(attempts, "train_and_publish", raising_alone(attempts.train_and_publish))
    run_inline(sweep)
    good, bad = Status.SUCCEEDED, Status.FAILED
    assert statuses(sweep) == [good, good, bad, good]
    assert_same(sweep, together, 0, 1e-5)


def raising_alone(plain: Any) -> Any:
    def train(kept: Any, trial: Any, *rest: Any) -> None:
        if trial.spec.loss_type == "ipo":
            raise ValueError("this loss cannot be computed")
        plain(kept, trial, *rest)

    return train


def test_a_stopped_group_goes_on_to_the_weights_logs_and_table_of_an_undisturbed_one(
    sweep: Sweep, together: Sweep, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    steps.act = lambda step, num: asked.append(step)
    with monkeypatch.context() as patch:
        patch.setattr(attempts, "polled_stop", lambda store, name: lambda: 5 in asked)
        run_group(WorkerCache(sweep), sweep.trials, WorkerSlot())
    assert statuses(sweep) == [Status.INTERRUPTED] * 4
    steps.seen.clear()
    run_inline(sweep)
    assert steps.seen == [(step, 4) for step in range(6, 10)]
    for index in range(4):
        assert_same(sweep, together, index, 0)


def test_trials_that_resume_at_different_steps_are_grouped_by_step(
    sweep: Sweep, together: Sweep, steps: Steps
) -> None:
    """The process dies in step 7; two trials have lost their newer checkpoint by then."""
    steps.act = raising_with_size(SystemExit(), 7)
    with pytest.raises(SystemExit):
        run_group(WorkerCache(sweep), sweep.trials, WorkerSlot())
    for trial in sweep.trials[1::2]:
        folder = Path(sweep.store.display(sweep.store.trial(trial.trial_id, "checkpoints")))
        shutil.rmtree(folder / "step-000006")
    steps.seen.clear()
    steps.act = lambda step, num: None
    run_group(
        WorkerCache(sweep), sweep.trials, WorkerSlot()
    )  # as if the cluster had not split them
    assert statuses(sweep) == [Status.SUCCEEDED] * 4
    resumed = [(step, 2) for step in (5, 6, 7, 7, 8, 8, 9, 9)]
    assert sorted(steps.seen) == resumed
    assert {read_document(sweep, trial)["largest_group"] for trial in sweep.trials} == {0}
    for index in range(4):
        assert_same(sweep, together, index, 1e-6)


def raising_with_size(error: BaseException, step: int) -> Callable[[int, int], None]:
    act = raising(error, step)
    return lambda step, num: act(step)


def test_a_group_whose_process_dies_again_and_again_is_halved_until_one_trial_fails(
    sweep: Sweep, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Tune sees it: the process is gone in step 3 wherever the third trial is among them."""
    guilty = sweep.trials[2].spec
    plain = fused._Group.__init__

    def watched(self: Any, trials: Any, *rest: Any) -> None:
        plain(self, trials, *rest)
        self.has_guilty = guilty in trials

    def die(group: Any, batch: Any) -> None:
        if group.has_guilty and group.step == 2:
            raise SystemExit()
        step(group, batch)

    step = fused._Group._train_step
    monkeypatch.setattr(fused._Group, "__init__", watched)
    monkeypatch.setattr(fused._Group, "_train_step", die)
    deaths = 0
    while True:
        try:
            run_group(WorkerCache(sweep), sweep.trials, WorkerSlot())
            break
        except SystemExit:
            deaths += 1
            assert deaths < 20
    good, bad = Status.SUCCEEDED, Status.FAILED
    assert statuses(sweep) == [good, good, bad, good]
    failure = trial_status(sweep, sweep.trials[2]).failure
    assert failure is not None and "died each time" in failure.message


def test_what_was_begun_alone_is_ended_alone(
    data: Path, tmp_path: Path, alone: Sweep, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    from .in_process import stop_in_step

    stop_in_step(copy_of(data, tmp_path), 5, monkeypatch)
    sweep = small_sweep(tmp_path / "store", *OVERRIDES, FUSED)
    run_inline(sweep)
    assert statuses(sweep) == [Status.SUCCEEDED] * 4
    assert set(steps.seen) == {(step, 3) for step in range(1, 10)}
    assert note(sweep, 0) is None
    assert_same(sweep, alone, 0, 0)
