"""The training of a trial in the store: from its newest checkpoint to published weights.

Alone (`train_and_publish`), or with others in trial_group.py, which takes the same steps for each.
Runs of several sweeps may work on the same trial at once: who comes second takes the weights of the
first. Nothing is tried again here.
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
from prefsweep.orchestrator.state.trial_record import TrialLog, has_weights
from prefsweep.orchestrator.store.store import Store, new_manifest
from prefsweep.orchestrator.tasks.cache import Kept
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
    """A training that is about to begin or to go on."""

    trial: Trial
    state: TrialLog
    output: TrialOutput
    step: int
    """After which it begins."""
    folder: Path | None
    """Of the checkpoint it goes on from."""
    hooks: "Hooks"

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Within, the checkpoint may be taken away by another run: raises StoreError then."""
        with reading(self.folder, lambda: self.state.has_stepped):
            yield


def train_and_publish(
    kept: Kept,
    trial: Trial,
    state: TrialLog,
    should_stop: Callable[[], bool],
    output: TrialOutput,
) -> None:
    """Train and publish the weights; ends early where another run has published them."""
    from prefsweep.workers.train import train

    started = time.monotonic()
    training = prepare(kept, trial, state, should_stop, output)
    with kept.sweep.store.staging() as folder:
        weights, models = folder / "weights", (kept.policy(), kept.tokenizer)
        try:
            with training.reading():
                spec = kept.sweep.spec.training
                notes = train(trial.spec, spec, *models, kept.pairs, weights, training.hooks)
        except StopRequested:
            if not is_trained_elsewhere(kept.sweep, training):
                raise
        else:
            publish_weights(kept.sweep, training, weights, notes, time.monotonic() - started)


def prepare(
    kept: Kept,
    trial: Trial,
    state: TrialLog,
    should_stop: Callable[[], bool],
    output: TrialOutput,
) -> Training:
    """Look for the newest checkpoint and set the trial's log to it."""
    from prefsweep.workers.batches import max_steps

    sweep, store = kept.sweep, kept.sweep.store
    document = {
        "trial": trial.spec.model_dump(mode="json"),
        "parts": sweep.fingerprints.trial_parts(trial.spec),
    }
    store.write_json(store.trial(trial.trial_id, "trial.json"), document)
    checkpoint = newest_checkpoint(sweep, trial)
    step, metrics = (0, b"") if checkpoint is None else (checkpoint.step, checkpoint.metrics)
    state.restart(step, metrics, max_steps(sweep.spec.training, kept.pairs))
    state.write(Status.RUNNING)
    output.note(f"training from step {step}")
    found = None if checkpoint is None else checkpoint.folder
    hooks = _hooks(kept, trial, state, should_stop, output, resume_from=found)
    return Training(trial, state, output, step, found, hooks)


def publish_weights(
    sweep: Sweep, training: Training, weights: Path, notes: dict[str, float], seconds: float
) -> None:
    """Publish what a training has made, after the log that goes with it."""
    trial, state = training.trial, training.state
    state.complete()  # nobody trains again for lines that are missing then
    if state.gpus:
        notes["gpus"] = state.gpus
    if state.halvings:  # such weights differ from others by rounding
        notes["halvings"] = float(state.halvings)
    manifest = new_manifest(trial.trial_id, 1, seconds, notes)
    sweep.store.publish(weights_path(sweep, trial), weights, manifest)
    state.complete()  # from here on no other run writes there; one may have done so just now


def is_trained_elsewhere(sweep: Sweep, training: Training) -> bool:
    """Whether a training has stopped because another run has published the weights."""
    found = has_weights(sweep.store, training.trial)
    if found:
        training.output.note("another run has trained it")
    return found


def _hooks(
    kept: Kept,
    trial: Trial,
    state: TrialLog,
    should_stop: Callable[[], bool],
    output: TrialOutput,
    *,
    resume_from: Path | None,
) -> "Hooks":
    from prefsweep.workers.hooks import Hooks

    sweep = kept.sweep
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
                f"eval/{k}": v for k, v in evaluate_now(kept, model).items() if v is not None
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
    """What another run takes away while it is read can be found anew: raises StoreError then."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if folder is None or folder.exists() or is_read():
            raise
        raise StoreError(f"{folder} was deleted while it was read, by another run") from error


def whole_weights(sweep: Sweep, trial: Trial) -> Path | None:
    """The folder of the trained weights, whole to the last byte; None where there are none.

    Damaged ones are put aside; what is there without a manifest may be in the making elsewhere.
    Raises StoreError if they cannot be read just now, which says nothing of them.
    """
    if not has_weights(sweep.store, trial):
        return None
    try:
        return Store(sweep.storage).fetch(weights_path(sweep, trial))
    except DamagedError as error:
        log.warning("trial %s is trained again: %s", trial.name, error)
        return None


def weights_path(sweep: Sweep, trial: Trial) -> str:
    """Path of a trial's weights in the store."""
    return sweep.store.trial(trial.trial_id, "weights")


def reached(sweep: Sweep, trial: Trial) -> int:
    """How far the trial is in the store, as a number that only grows: the step of its newest
    checkpoint, and beyond all steps once it has weights."""
    if has_weights(sweep.store, trial):
        return 10**9
    return newest_step(sweep, trial)


def lenient(should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """What cannot be read for the moment is not so: no request was made, no weights are there."""

    def asked() -> bool:
        try:
            return should_stop()
        except StoreError:
            return False

    return asked
