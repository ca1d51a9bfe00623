"""Trials that are stopped, damaged or fail, in this process: they end as undisturbed ones do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prefsweep.orchestrator import trials
from prefsweep.orchestrator.cluster import InlineCluster
from prefsweep.orchestrator.kept import Kept
from prefsweep.orchestrator.machines.border import set_up_worker
from prefsweep.orchestrator.pipeline import Errored, run_sweep
from prefsweep.orchestrator.recovery import checkpoints
from prefsweep.orchestrator.recovery.stopping import request_stop
from prefsweep.orchestrator.store import Store
from prefsweep.orchestrator.sweep import Sweep
from prefsweep.orchestrator.trials import Place, run_trial
from prefsweep.orchestrator.tuning import shares
from prefsweep.orchestrator.watching.status import is_finished, trial_status
from prefsweep.sweeps.errors import StoreError
from prefsweep.sweeps.records import Status, TrialStatus
from prefsweep.workers.generate import Generator
from prefsweep.workers.train import PreparedDPOTrainer

from .small import small_sweep, table, weights

GRID = "grid=[{loss_type: sigmoid, beta: 0.1, learning_rate: 1e-3}]"
STEPS = ["training.max_steps=9", "training.logging_steps=2", "training.save_steps=2"]
QUICK = ["retries.base_delay_s=0", "retries.max_attempts=3"]
OVERRIDES = [GRID, *STEPS, *QUICK, "evaluation.eval_steps=3"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with everything up to the trials."""
    folder = tmp_path_factory.mktemp("data")
    sweep = small_sweep(folder, *OVERRIDES)
    run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources), until="untrained")
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    sweep = copy_of(data, tmp_path_factory.mktemp("undisturbed"))
    run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources))
    return sweep


@pytest.fixture
def sweep(data: Path, tmp_path: Path) -> Sweep:
    set_up_worker(1)
    return copy_of(data, tmp_path)


def copy_of(data: Path, folder: Path, *overrides: str) -> Sweep:
    shutil.copytree(data, folder / "store")
    return small_sweep(folder / "store", *OVERRIDES, *overrides)


def run(sweep: Sweep, errored: Errored = "retry") -> TrialStatus:
    run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources), errored=errored)
    return trial_status(sweep, sweep.trials[0])


def metrics(sweep: Sweep) -> bytes | None:
    return sweep.store.read(sweep.store.trial(sweep.trials[0].trial_id, "metrics.jsonl"))


def document(sweep: Sweep) -> dict[str, Any]:
    path = sweep.store.trial(sweep.trials[0].trial_id, "status.json")
    return json.loads(sweep.store.read(path) or b"{}")


def log_text(sweep: Sweep) -> str:
    path = sweep.store.trial(sweep.trials[0].trial_id, "trial.log")
    return (sweep.store.read(path) or b"").decode()


def assert_undisturbed(sweep: Sweep, undisturbed: Sweep) -> None:
    assert weights(sweep) == weights(undisturbed)
    assert metrics(sweep) == metrics(undisturbed)
    assert table(sweep) == table(undisturbed)
    left = sweep.store.names(sweep.store.trial(sweep.trials[0].trial_id))
    assert "checkpoints" not in left
    scratch = Path(sweep.store.display("tmp"))
    assert not scratch.exists() or not list(scratch.iterdir())


class Fault:
    """Calls `act` in training, before each step's update, with its number."""

    def __init__(self, patch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
        self.steps: list[int] = []
        plain = PreparedDPOTrainer.training_step

        def faulty(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            self.steps.append(trainer.state.global_step + 1)
            act(self.steps[-1])
            return plain(trainer, *args, **kwargs)

        patch.setattr(PreparedDPOTrainer, "training_step", faulty)


def nothing(step: int) -> None:
    pass


def raising(error: BaseException, *steps: int) -> Callable[[int], None]:
    """Raises in each of `steps`, as often as it is listed."""
    left = list(steps)

    def act(step: int) -> None:
        if step in left:
            left.remove(step)
            raise error

    return act


def stop_in_step(sweep: Sweep, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the trial until a request made during `step` ends it."""
    asked: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(trials, "polled_stop", lambda store, name: lambda: step in asked)
        Fault(patch, asked.append)
        run_trial(Kept(sweep), sweep.trials[0])
    status = trial_status(sweep, sweep.trials[0])
    assert status.status == Status.INTERRUPTED and status.failure is None


@pytest.mark.parametrize("step", [1, 3, 4, 8])
def test_a_stopped_trial_goes_on_to_the_weights_log_and_table_of_an_undisturbed_one(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    stop_in_step(sweep, step, monkeypatch)
    found = checkpoints.newest_checkpoint(sweep, sweep.trials[0])
    assert found is not None and found.step == step
    fault = Fault(monkeypatch, nothing)
    assert run(sweep).attempts == 2
    assert fault.steps == list(range(step + 1, 10))
    assert_undisturbed(sweep, undisturbed)


def test_a_stop_in_the_evaluation_publishes_nothing_and_repeats_only_it(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, asked = sweep.trials[0], [False]
    plain = trials.evaluate_and_publish

    def late(*args: Any, **kwargs: Any) -> Any:
        asked[0] = True
        return plain(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trials, "polled_stop", lambda store, name: lambda: asked[0])
        patch.setattr(trials, "evaluate_and_publish", late)
        run_trial(Kept(sweep), trial)
    assert trial_status(sweep, trial).status == Status.INTERRUPTED
    assert sweep.store.names(sweep.store.trial(trial.trial_id, "evaluations")) == []
    fault = Fault(monkeypatch, nothing)
    run(sweep)
    assert fault.steps == []
    assert_undisturbed(sweep, undisturbed)


def test_a_pending_trial_sees_a_stop_request_and_does_nothing(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault(monkeypatch, nothing)
    request_stop(sweep.store, sweep.spec.name)
    run_trial(Kept(sweep), sweep.trials[0])
    assert fault.steps == []
    assert trial_status(sweep, sweep.trials[0]).status == Status.INTERRUPTED


FILES = {
    "manifest.json",
    "metrics.jsonl",
    "model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
    "window.json",
}


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def altered(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_whatever_is_damaged_in_a_checkpoint_the_one_before_is_used(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of checkpoints 4 and 5: each file of the newer one missing, truncated and altered."""
    trial = sweep.trials[0]
    stop_in_step(sweep, 5, monkeypatch)
    folder = Path(sweep.store.display(sweep.store.trial(trial.trial_id, "checkpoints")))
    assert sorted(path.name for path in folder.iterdir()) == ["step-000004", "step-000005"]
    newest = folder / "step-000005"
    assert {path.name for path in newest.iterdir()} >= FILES
    shutil.copytree(newest, tmp_path / "whole")
    for name in sorted(FILES):
        for damage in (Path.unlink, truncated, altered):
            if name == "manifest.json" and damage is altered:
                continue  # a changed date does no harm; what matters in it is below
            damage(newest / name)
            found = checkpoints.newest_checkpoint(sweep, trial)
            assert found is not None and found.step == 4, (name, damage)
            assert not newest.exists()
            shutil.copytree(tmp_path / "whole", newest)
    (newest / "optimizer.pt").unlink()
    manifest = json.loads((newest / "manifest.json").read_text())
    del manifest["files"]["optimizer.pt"]
    (newest / "manifest.json").write_text(json.dumps(manifest))
    fault = Fault(monkeypatch, nothing)
    run(sweep)
    assert fault.steps == [5, 6, 7, 8, 9]
    assert_undisturbed(sweep, undisturbed)


def test_without_a_whole_checkpoint_training_starts_from_scratch(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_step(sweep, 5, monkeypatch)
    path = Path(sweep.store.display(sweep.store.trial(sweep.trials[0].trial_id)))
    for folder in (path / "checkpoints").iterdir():
        altered(folder / "optimizer.pt")
    (path / "checkpoints" / "notes").mkdir()
    fault = Fault(monkeypatch, nothing)
    run(sweep)
    assert fault.steps == list(range(1, 10))
    assert_undisturbed(sweep, undisturbed)


@pytest.mark.parametrize(
    "tail", [b'{"step": 5.0, "lo', b'{"step": 6.0}\n\xff\n[1]\n{"step": "7"}\n']
)
def test_a_broken_metrics_log_goes_on_from_the_checkpoints_own(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch, tail: bytes
) -> None:
    stop_in_step(sweep, 5, monkeypatch)
    path = sweep.store.trial(sweep.trials[0].trial_id, "metrics.jsonl")
    sweep.store.write(path, (metrics(sweep) or b"")[20:] + tail)
    run(sweep)
    assert_undisturbed(sweep, undisturbed)


def test_a_trial_that_another_run_ends_first_is_taken_as_it_is(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In step 5 come the weights and the log of the other run, which goes on to an evaluation."""
    trial = sweep.trials[0]
    folders = [Path(s.store.display(s.store.trial(trial.trial_id))) for s in (undisturbed, sweep)]

    def other_run_ends(step: int) -> None:
        if step == 5:
            shutil.copy(folders[0] / "metrics.jsonl", folders[1])
            shutil.copytree(folders[0] / "weights", folders[1] / "weights")

    monkeypatch.setattr("prefsweep.orchestrator.recovery.stopping.POLL_S", 0.0)
    fault = Fault(monkeypatch, other_run_ends)
    run_trial(Kept(sweep), trial)
    assert fault.steps == [1, 2, 3, 4, 5]
    assert trial_status(sweep, trial).status == Status.SUCCEEDED
    assert "another run has trained it" in log_text(sweep)
    run(sweep)
    assert_undisturbed(sweep, undisturbed)


def test_a_checkpoint_that_another_run_deletes_while_it_is_read_is_no_failure(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_step(sweep, 5, monkeypatch)
    plain = PreparedDPOTrainer._load_from_checkpoint

    def deleted(trainer: Any, folder: str, *args: Any, **kwargs: Any) -> Any:
        if folder.endswith("5"):
            shutil.rmtree(folder)
        return plain(trainer, folder, *args, **kwargs)

    monkeypatch.setattr(PreparedDPOTrainer, "_load_from_checkpoint", deleted)
    fault = Fault(monkeypatch, nothing)
    assert run(sweep).status == Status.SUCCEEDED
    assert fault.steps == [5, 6, 7, 8, 9]
    assert_undisturbed(sweep, undisturbed)


def test_what_another_run_writes_to_the_log_of_a_trial_is_gone_at_its_end(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sweep.store.trial(sweep.trials[0].trial_id, "metrics.jsonl")

    def write_twice(step: int) -> None:
        if step in (4, 9):
            sweep.store.append(path, (metrics(sweep) or b"").splitlines(keepends=True)[-1])

    publish = Store.publish

    def publish_late(store: Store, path: str, *of_what: Any) -> None:
        if path.endswith("/weights"):
            write_twice(9)
        publish(store, path, *of_what)

    Fault(monkeypatch, write_twice)
    monkeypatch.setattr(Store, "publish", publish_late)
    run(sweep)
    assert_undisturbed(sweep, undisturbed)


def test_weights_damaged_before_the_evaluation_are_trained_again(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("no evaluation")

    trial = sweep.trials[0]
    with monkeypatch.context() as patch:
        patch.setattr(trials, "evaluate_and_publish", broken)
        run_trial(Kept(sweep), trial)
    file = sweep.store.display(sweep.store.trial(trial.trial_id, "weights", "model.safetensors"))
    altered(Path(file))
    fault = Fault(monkeypatch, nothing)
    assert run(sweep, "resume").status == Status.SUCCEEDED
    assert fault.steps == list(range(1, 10))
    assert_undisturbed(sweep, undisturbed)


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
    run_trial(Kept(sweep), sweep.trials[0], Place(gpus))
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
    assert "in _compute_loss" in failure.traceback
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
        patch.setattr(trials, "evaluate_and_publish", broken)
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
    monkeypatch.setattr(trials, "pause", lambda seconds, should_stop: told.append(seconds))
    monkeypatch.setattr(trials, "delay_s", lambda retries, num_failed: float(num_failed))
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
            run_trial(Kept(sweep), trial)
    run_trial(Kept(sweep), trial)
    status = trial_status(sweep, trial)
    assert (status.status, status.attempts) == (Status.FAILED, 4)
    assert status.failure is not None and status.failure.kind == "transient"
    assert "died each time" in status.failure.message
    assert waits == [1.0, 2.0]
