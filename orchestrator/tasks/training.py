"""Trains a trial in the store: from its newest checkpoint to published weights.

`train_and_publish` trains one trial; trial_group.py takes the same steps for each trial of a group.
Runs of several sweeps may train the same trial at once: the second run uses the weights that the
first one publishes. Nothing is retried here.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefsweep.orchestrator.state.stop import polled
from prefsweep.orchestrator.state.sweep import Sweep, Trial
from prefsweep.orchestrator.state.trial_record import TrialRecord, has_weights
from prefsweep.orchestrator.store.store import Store, new_manifest
from prefsweep.orchestrator.tasks.cache import WorkerCache
from prefsweep.orchestrator.tasks.checkpoints import (
    newest_checkpoint,
    newest_step,
    publish_checkpoint,
)
from prefsweep.orchestrator.tasks.evaluation import evaluate_now
from prefsweep.orchestrator.tasks.trial_output import TrialOutput
from prefsweep.sweeps.errors import DamagedError, StopRequested, StoreError
from prefsweep.sweeps.records import Status

if TYPE_CHECKING:
    from prefsweep.workers.hooks import Hooks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """A training that is about to start or resume."""

    trial: Trial
    state: TrialRecord
    output: TrialOutput
    step: int
    """Step after which it starts."""
    folder: Path | None
    """Folder of the checkpoint that it resumes from."""
    hooks: "Hooks"

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside the block, raises StoreError if another run deletes the checkpoint."""
        with reading(self.folder, lambda: self.state.has_stepped):
            yield


def train_and_publish(
    cache: WorkerCache,
    trial: Trial,
    state: TrialRecord,
    should_stop: Callable[[], bool],
    output: TrialOutput,
) -> None:
    """Train and publish the weights; ends early if another run publishes them."""
    from prefsweep.workers.train import train

    started = time.monotonic()
    training = prepare(cache, trial, state, should_stop, output)
    with cache.sweep.store.staging() as folder:
        weights, models = folder / "weights", (cache.policy(), cache.tokenizer)
        try:
            with training.reading():
                spec = cache.sweep.spec.training
                notes = train(trial.spec, spec, *models, cache.pairs, weights, training.hooks)
        except StopRequested:
            if not is_trained_elsewhere(cache.sweep, training):
                raise
        else:
            publish_weights(cache.sweep, training, weights, notes, time.monotonic() - started)


def prepare(
    cache: WorkerCache,
    trial: Trial,
    state: TrialRecord,
    should_stop: Callable[[], bool],
    output: TrialOutput,
) -> Training:
    """Find the newest checkpoint and reset the trial's record to it."""
    from prefsweep.workers.batches import max_steps

    sweep, store = cache.sweep, cache.sweep.store
    document = {
        "trial": trial.spec.model_dump(mode="json"),
        "parts": sweep.fingerprints.trial_parts(trial.spec),
    }
    store.write_json(store.trial(trial.trial_id, "trial.json"), document)
    checkpoint = newest_checkpoint(sweep, trial)
    step, metrics = (0, b"") if checkpoint is None else (checkpoint.step, checkpoint.metrics)
    state.restart(step, metrics, max_steps(sweep.spec.training, cache.pairs))
    state.write(Status.RUNNING)
    output.note(f"training from step {step}")
    found = None if checkpoint is None else checkpoint.folder
    hooks = _hooks(cache, trial, state, should_stop, output, resume_from=found)
    return Training(trial, state, output, step, found, hooks)


def publish_weights(
    sweep: Sweep, training: Training, weights: Path, notes: dict[str, float], seconds: float
) -> None:
    """Publish the weights of a training, after its complete metrics log."""
    trial, state = training.trial, training.state
    state.complete()  # lines that are missing once the weights exist would stay missing
    if state.gpus:
        notes["gpus"] = state.gpus
    if state.halvings:  # halving changes the weights by rounding
        notes["halvings"] = float(state.halvings)
    manifest = new_manifest(trial.trial_id, 1, seconds, notes)
    sweep.store.publish(weights_path(sweep, trial), weights, manifest)
    state.complete()  # another run may have written in between; from now on none does


def is_trained_elsewhere(sweep: Sweep, training: Training) -> bool:
    """Whether a training stopped because another run has published the weights."""
    found = has_weights(sweep.store, training.trial)
    if found:
        training.output.note("another run has trained this trial")
    return found


def _hooks(
    cache: WorkerCache,
    trial: Trial,
    state: TrialRecord,
    should_stop: Callable[[], bool],
    output: TrialOutput,
    *,
    resume_from: Path | None,
) -> "Hooks":
    from prefsweep.workers.hooks import Hooks

    sweep = cache.sweep
    is_trained = polled(lenient(lambda: has_weights(sweep.store, trial)))

    def publish(step: int, folder: Path) -> None:
        if is_trained():
            return
        state.flush()
        publish_checkpoint(sweep, trial, step, folder, state.metrics)
        output.note(f"checkpoint of step {step} published")
        output.upload()

    def is_evaluated(step: int) -> bool:
        every = sweep.spec.evaluation.eval_steps
        return every is not None and step % every == 0

    def on_step(step: int, model: Any) -> None:
        state.has_stepped = True
        if is_evaluated(step):
            numbers = {
                f"eval/{k}": v for k, v in evaluate_now(cache, model).items() if v is not None
            }
            state.report({"step": float(step), **numbers})

    return Hooks(
        report=state.report,
        publish=publish,
        on_step=on_step,
        reads_model=is_evaluated,
        resume_from=resume_from,
        should_stop=lambda: should_stop() or is_trained(),
        halvings=state.halvings,
    )


@contextmanager
def reading(folder: Path | None, is_read: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Raises StoreError, which is retried, if another run deletes `folder` while it is read."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if folder is None or folder.exists() or is_read():
            raise
        raise StoreError(f"{folder} was deleted while it was read, by another run") from error


def verified_weights(sweep: Sweep, trial: Trial) -> Path | None:
    """The folder of the trained weights, with verified content; None without finished weights.

    Damaged weights are set aside. Weights without a manifest are ignored, because another run may
    be writing them. Raises StoreError if they cannot be read now, which does not mean damage.
    """
    if not has_weights(sweep.store, trial):
        return None
    try:
        return Store(sweep.storage).fetch(weights_path(sweep, trial))
    except DamagedError as error:
        log.warning("trial %s will be trained again: %s", trial.name, error)
        return None


def weights_path(sweep: Sweep, trial: Trial) -> str:
    """Path of a trial's weights in the store."""
    return sweep.store.trial(trial.trial_id, "weights")


def progress(sweep: Sweep, trial: Trial) -> int:
    """The trial's progress in the store, a number that only grows: the step of its newest
    checkpoint, or 10**9 once it has weights."""
    if has_weights(sweep.store, trial):
        return 10**9
    return newest_step(sweep, trial)


def lenient(should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """`should_stop`, but False while the storage cannot be read."""

    def asked() -> bool:
        try:
            return should_stop()
        except StoreError:
            return False

    return asked
