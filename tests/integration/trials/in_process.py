"""A trial of nine steps in this process, and what may happen in one of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefsweep.orchestrator.execution.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.state.trial_record import trial_status
from prefsweep.orchestrator.tasks import attempts
from prefsweep.orchestrator.tasks.attempts import run_trial
from prefsweep.orchestrator.tasks.cache import WorkerCache
from prefsweep.sweeps.records import Errored, Status, TrialStatus
from prefsweep.workers.train import PreparedDPOTrainer

from ..small import small_sweep, table, weights

GRID = "grid=[{loss_type: sigmoid, beta: 0.1, learning_rate: 1e-3}]"
STEPS = ["training.max_steps=9", "training.logging_steps=2", "training.save_steps=2"]
QUICK = ["retries.base_delay_s=0", "retries.max_attempts=3"]
OVERRIDES = [GRID, *STEPS, *QUICK, "evaluation.eval_steps=3"]


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
        patch.setattr(attempts, "polled_stop", lambda store, name: lambda: step in asked)
        Fault(patch, asked.append)
        run_trial(WorkerCache(sweep), sweep.trials[0])
    status = trial_status(sweep, sweep.trials[0])
    assert status.status == Status.INTERRUPTED and status.failure is None
