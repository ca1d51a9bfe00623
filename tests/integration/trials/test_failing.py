"""Trials that fail: what is tried again, with what, and what has to be asked for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prefsweep.orchestrator.execution.tuning import shares
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.state.trial_record import is_finished, trial_status
from prefsweep.orchestrator.tasks import attempts
from prefsweep.orchestrator.tasks.attempts import WorkerSlot, run_trial
from prefsweep.orchestrator.tasks.cache import WorkerCache
from prefsweep.sweeps.errors import StoreError
from prefsweep.sweeps.records import Status
from prefsweep.workers.generate import Generator
from prefsweep.workers.train import PreparedDPOTrainer

from ..small import small_sweep, weights
from .in_process import (
    OVERRIDES,
    Fault,
    assert_undisturbed,
    copy_of,
    document,
    log_text,
    metrics,
    nothing,
    raising,
    run,
)


def test_out_of_memory_halves_the_batch_from_the_newest_checkpoint_on(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = PreparedDPOTrainer._compute_loss

    def small_memory(self: Any, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        if self.state.global_step >= 4 and len(inputs["ref_chosen_logps"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(self, model, inputs, return_outputs)

    monkeypatch.setattr(PreparedDPOTrainer, "_compute_loss", small_memory)
    status = run(sweep)
    assert (status.status, status.attempts) == (Status.SUCCEEDED, status.halvings + 1)
    assert status.halvings in (1, 2)
    ours = [json.loads(line) for line in (metrics(sweep) or b"").splitlines()]
    theirs = [json.loads(line) for line in (metrics(undisturbed) or b"").splitlines()]
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5, abs=1e-5)
    manifest = sweep.store.manifest(sweep.store.trial(sweep.trials[0].trial_id, "weights"))
    assert manifest is not None and manifest.notes["halvings"] == status.halvings
    assert "training from step 4" in log_text(sweep)


@pytest.mark.parametrize(("gpus", "outcome"), [(0.0, "failed"), (0.5, "pending"), (1.0, "failed")])
def test_what_no_smaller_batch_helps_gets_a_larger_share_or_fails(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, gpus: float, outcome: str
) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PreparedDPOTrainer, "_compute_loss", full)
    run_trial(WorkerCache(sweep), sweep.trials[0], WorkerSlot(gpus))
    found = document(sweep)
    assert found["status"] == outcome
    assert found["larger_shares"] == (outcome == "pending")
    assert shares(sweep, sweep.trials, 0.25) == {
        sweep.trials[0].trial_id: 0.5 if outcome == "pending" else 0.25
    }
    assert found["failure"]["kind"] == "out_of_memory" and found["halvings"] >= 1


def test_an_evaluation_that_does_not_fit_is_cut(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Generator._sample_batch

    def small_memory(self: Any, prompts: Any, num: int) -> Any:
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, prompts, num)

    monkeypatch.setattr(Generator, "_sample_batch", small_memory)
    status = run(sweep)
    assert (status.status, status.attempts, status.halvings) == (Status.SUCCEEDED, 1, 0)
    assert weights(sweep) == weights(undisturbed)
    assert "halving its passes" in log_text(sweep)
    kls = [trial_status(each, each.trials[0]).metrics["kl"] for each in (sweep, undisturbed)]
    assert kls[0] == pytest.approx(kls[1], rel=1e-3)


def test_a_loss_that_is_not_finite_fails_once_and_waits_to_be_asked_for(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, spoilt = PreparedDPOTrainer._compute_loss, [True]

    def poisoned(self: Any, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        if spoilt[0] and self.state.global_step == 4:
            inputs = inputs | {"ref_chosen_logps": inputs["ref_chosen_logps"] * float("nan")}
        return plain(self, model, inputs, return_outputs)

    monkeypatch.setattr(PreparedDPOTrainer, "_compute_loss", poisoned)
    status = run(sweep)
    assert (status.status, status.attempts) == (Status.FAILED, 1)
    failure = status.failure
    assert failure is not None and failure.kind == "deterministic"
    assert "the loss is nan at step 5" in failure.message
    assert "TrialError: the loss is nan at step 5" in failure.traceback
    assert "--restart-errored" in failure.advice
    assert failure.log_path.endswith("trial.log")
    assert "the loss is nan at step 5" in log_text(sweep)
    spoilt[0] = False
    assert run(sweep).attempts == 1 and run(sweep, "skip").attempts == 1
    fault = Fault(monkeypatch, nothing)
    resumed = run(sweep, "resume")
    assert (resumed.status, resumed.attempts) == (Status.SUCCEEDED, 2)
    assert fault.steps == [5, 6, 7, 8, 9]


def test_restart_errored_starts_from_scratch(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Fault(patch, raising(ValueError("broken"), 5))
        assert run(sweep).status == Status.FAILED
    fault = Fault(monkeypatch, nothing)
    status = run(sweep, "restart")
    assert fault.steps == list(range(1, 10))
    assert (status.status, status.attempts) == (Status.SUCCEEDED, 1)
    assert_undisturbed(sweep, undisturbed)


def test_restart_errored_keeps_weights_and_evaluations_that_another_sweep_has_finished(
    undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One trial in both sweeps; the second, with more held-out prompts, fails to evaluate it."""

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("no evaluation")

    first = copy_of(Path(undisturbed.storage), tmp_path)
    second = small_sweep(tmp_path / "store", *OVERRIDES, "name=second", "prompts.num_eval=5")
    assert second.trials == first.trials
    with monkeypatch.context() as patch:
        patch.setattr(attempts, "evaluate_trained", broken)
        assert run(second).status == Status.FAILED
    fault = Fault(monkeypatch, nothing)
    assert run(second, "restart").status == Status.SUCCEEDED
    assert fault.steps == []
    assert is_finished(first, first.trials[0].trial_id)
    assert run(first).status == Status.SUCCEEDED
    assert_undisturbed(first, undisturbed)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The number of failures in a row before each wait, instead of waiting."""
    told: list[float] = []
    monkeypatch.setattr(attempts, "pause", lambda seconds, should_stop: told.append(seconds))
    monkeypatch.setattr(attempts, "delay_s", lambda retries, num_failed: float(num_failed))
    return told


def test_storage_that_fails_for_a_while_is_waited_for(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    with monkeypatch.context() as patch:
        fault = Fault(patch, raising(StoreError("it cannot be written"), 5, 5))
        status = run(sweep)
    assert (status.status, status.attempts) == (Status.SUCCEEDED, 3)
    assert fault.steps == [1, 2, 3, 4, 5, 5, 5, 6, 7, 8, 9]
    assert waits == [1.0, 1.0]  # the second attempt was the first from step 4
    assert_undisturbed(sweep, undisturbed)


def test_storage_that_fails_for_good_fails_the_trial_and_a_later_run_ends_it(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    with monkeypatch.context() as patch:
        Fault(patch, raising(OSError(28, "No space left on device"), *[1] * 10))
        status = run(sweep)
    assert (status.status, status.attempts, waits) == (Status.FAILED, 3, [1.0, 2.0])
    assert status.failure is not None and status.failure.kind == "transient"
    assert sweep.storage in status.failure.message + status.failure.advice
    assert run(sweep, "skip").status == Status.FAILED
    assert run(sweep).attempts == 4
    assert_undisturbed(sweep, undisturbed)


def test_a_worker_that_dies_each_time_fails_its_trial_after_the_cap(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    """As Tune sees it: the process is gone in step 3, and another one begins the next attempt."""
    trial = sweep.trials[0]
    Fault(monkeypatch, raising(SystemExit(), *[3] * 10))
    for _ in range(4):  # the second is the first of three that begin with step 2's checkpoint
        with pytest.raises(SystemExit):
            run_trial(WorkerCache(sweep), trial)
    run_trial(WorkerCache(sweep), trial)
    status = trial_status(sweep, trial)
    assert (status.status, status.attempts) == (Status.FAILED, 4)
    assert status.failure is not None and status.failure.kind == "transient"
    assert "died each time" in status.failure.message
    assert waits == [1.0, 2.0]
