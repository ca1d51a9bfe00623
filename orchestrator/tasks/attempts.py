"""One trial from start to end, wherever it runs: train, publish, evaluate, publish, record.

Whatever happens ends in the trial's status.json. What may pass is tried again here, from the newest
checkpoint; an exception leaves this file only where a fresh process has to go on. Runs of several
sweeps may work on the same trial at once: who comes second takes the weights of the first.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefsweep.orchestrator.state.stop import polled, polled_stop
from prefsweep.orchestrator.state.sweep import Sweep, Trial
from prefsweep.orchestrator.state.trial_record import TrialLog, has_weights
from prefsweep.orchestrator.store.store import Store, new_manifest
from prefsweep.orchestrator.tasks.cache import Kept
from prefsweep.orchestrator.tasks.checkpoints import (
    delete_checkpoints,
    newest_checkpoint,
    newest_step,
    publish_checkpoint,
)
from prefsweep.orchestrator.tasks.evaluation import evaluate_and_publish, evaluate_fitting
from prefsweep.orchestrator.tasks.failures import (
    DIED,
    classify,
    delay_s,
    is_broken_device,
    pause,
)
from prefsweep.orchestrator.tasks.trial_output import TrialOutput
from prefsweep.sweeps.errors import DamagedError, OutOfMemory, StopRequested, StoreError
from prefsweep.sweeps.records import Failure, Metrics, Status

if TYPE_CHECKING:
    from prefsweep.workers.train import Hooks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a trial runs."""

    gpus: float = 0.0
    """Its share of a GPU; below one it may be given more in another launch."""
    is_worker: bool = False
    """A process of its own: another takes over where this one is of no use any more."""


class BrokenWorkerError(RuntimeError):
    """This process cannot go on (its GPU context is lost); a fresh one can."""


def run_trial(kept: Kept, trial: Trial, place: Place = Place()) -> None:
    """Do what is missing of a trial: weights, then evaluation. Records failures, raises none.

    It is tried again as `retries` says. A stop request ends it as interrupted; wanting more of a
    GPU, as pending. Raises BrokenWorkerError in a worker that has to be replaced, and StoreError if
    the outcome cannot be written down.
    """
    runner = _Runner(kept, trial, place)
    with TrialOutput(kept.sweep, trial, prints=place.is_worker) as output:
        try:
            runner.run(output)
        finally:
            _release_memory()


class _Runner:
    """The attempts of one trial in one process."""

    def __init__(self, kept: Kept, trial: Trial, place: Place) -> None:
        self._kept, self._trial, self._place = kept, trial, place
        self._sweep, self._retries = kept.sweep, kept.sweep.spec.retries
        self._log = TrialLog(kept.sweep, trial, place.gpus)
        self._should_stop = _lenient(polled_stop(kept.sweep.store, kept.sweep.spec.name))

    def run(self, output: TrialOutput) -> None:
        """Attempts, until one of them, or a stop request, settles it."""
        if self._log.found == Status.RUNNING and not self._goes_on_after_death(output):
            return
        while True:
            if self._should_stop():
                self._write(Status.INTERRUPTED)
                return
            error = self._attempt(output)
            if error is None:
                return
            failure = replace(self._classified(error), log_path=output.path)
            output.note(failure.traceback)
            status = self._what_next(error, failure)
            if status != Status.RUNNING:
                self._write(status, failure)
                return
            del error  # with its traceback go the tensors of its frames
            _release_memory()
            self._wait(failure)

    def _attempt(self, output: TrialOutput) -> Exception | None:
        """One attempt; its error, if it has not settled the trial."""
        state = self._log
        try:
            state.begin(_reached(self._sweep, self._trial))
            output.note(f"attempt {state.attempts}, micro-batch halved {state.halvings} times")
            self._train_and_evaluate(output)
        except StopRequested as stop:
            output.note(str(stop))
            self._write(Status.INTERRUPTED)
        except Exception as error:  # the trial's border: a failure is data, and others go on
            return error
        else:
            self._write(Status.SUCCEEDED)
            output.note("succeeded")
        return None

    def _train_and_evaluate(self, output: TrialOutput) -> None:
        sweep, trial = self._sweep, self._trial
        try:
            weights = _whole_weights(sweep, trial)
            if weights is None:
                _train(self._kept, trial, self._log, self._should_stop, output)
                weights = sweep.store.fetch(_weights_path(sweep, trial))
            delete_checkpoints(sweep, trial)
            if sweep.store.manifest(sweep.evaluation_path(trial.trial_id)) is None:
                _evaluate(self._kept, trial, weights, self._should_stop)
        finally:
            sweep.store.drop_copies(sweep.store.trial(trial.trial_id))

    def _what_next(self, error: Exception, failure: Failure) -> Status:
        """RUNNING: again here; PENDING: again with a larger share of the GPU; FAILED."""
        state = self._log
        if failure.kind == "out_of_memory":
            if isinstance(error, OutOfMemory) and error.can_halve:
                state.halvings += 1
                state.fruitless = 0  # a smaller batch is another chance
                return Status.RUNNING
            if 0 < self._place.gpus < 1:
                state.larger_shares += 1
                return Status.PENDING
            return Status.FAILED
        if failure.kind == "deterministic" or state.fruitless >= self._retries.max_attempts:
            return Status.FAILED
        if isinstance(error, DamagedError):  # a stage before the trials has to make it again
            return Status.FAILED
        if self._place.is_worker and is_broken_device(error):
            self._write(Status.RUNNING, failure)  # as if the process had died
            raise BrokenWorkerError(failure.message) from None
        return Status.RUNNING

    def _wait(self, failure: Failure) -> None:
        state = self._log
        if failure.kind == "out_of_memory":
            log.warning(
                "trial %s: %s; again with half of that in a forward pass",
                self._trial.name,
                failure.message,
            )
            return
        seconds = delay_s(self._retries, state.fruitless)
        log.warning(
            "trial %s: attempt %d failed (%s); again in %.1f s",
            self._trial.name,
            state.attempts,
            failure.message,
            seconds,
        )
        state.last_failure = failure
        pause(seconds, self._should_stop)

    def _goes_on_after_death(self, output: TrialOutput) -> bool:
        """The process that had the trial died: whether this one takes over, after a while."""
        state = self._log
        came_further = _reached(self._sweep, self._trial) > state.reached
        if state.fruitless < self._retries.max_attempts or came_further:
            output.note(f"attempt {state.attempts} ended with its process")
            if not came_further:
                pause(delay_s(self._retries, max(1, state.fruitless)), self._should_stop)
            return True
        failure = replace(state.last_failure or DIED, log_path=output.path)
        self._write(Status.FAILED, failure)
        return False

    def _classified(self, error: Exception) -> Failure:
        return classify(error, self._sweep.store.display(""))

    def _write(self, status: Status, failure: Failure | None = None) -> None:
        """The outcome must be known: while storage fails, it is written again."""
        for num_failed in range(1, self._retries.max_attempts + 1):
            try:
                self._log.write(status, failure)
                return
            except (StoreError, OSError):
                if num_failed == self._retries.max_attempts:
                    raise
                pause(delay_s(self._retries, num_failed), lambda: False)


def restart_from_scratch(sweep: Sweep, trial: Trial) -> None:
    """Drop what a failed trial has made and what is remembered of it; finished weights stay.

    What failed is the evaluation then. Weights and evaluations are shared: other sweeps in the
    store may have finished with them.
    """
    if has_weights(sweep.store, trial):
        log.info("trial %s: its weights are finished and kept; it is evaluated again", trial.name)
        return
    for part in ("checkpoints", "weights", "evaluations", "metrics.jsonl", "status.json"):
        sweep.store.delete(sweep.store.trial(trial.trial_id, part))


def _train(
    kept: Kept,
    trial: Trial,
    state: TrialLog,
    should_stop: Callable[[], bool],
    output: TrialOutput,
) -> None:
    """Train and publish the weights; ends early where another run has published them."""
    from prefsweep.workers.batches import max_steps
    from prefsweep.workers.train import train

    sweep, started = kept.sweep, time.monotonic()
    store = sweep.store
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
    with store.staging() as folder:
        weights, models = folder / "weights", (kept.policy(), kept.tokenizer)
        try:
            with _reading(found, lambda: state.has_stepped):
                notes = train(trial.spec, sweep.spec.training, *models, kept.pairs, weights, hooks)
        except StopRequested:
            if not has_weights(store, trial):
                raise
            output.note("another run has trained it")
            return
        state.complete()  # nobody trains again for lines that are missing then
        if state.gpus:
            notes["gpus"] = state.gpus
        if state.halvings:  # such weights differ from others by rounding
            notes["halvings"] = float(state.halvings)
        manifest = new_manifest(trial.trial_id, 1, time.monotonic() - started, notes)
        store.publish(_weights_path(sweep, trial), weights, manifest)
        state.complete()  # from here on no other run writes there; one may have done so just now


def _hooks(
    kept: Kept,
    trial: Trial,
    state: TrialLog,
    should_stop: Callable[[], bool],
    output: TrialOutput,
    *,
    resume_from: Path | None,
) -> "Hooks":
    from prefsweep.workers.train import Hooks

    sweep = kept.sweep
    is_trained = polled(_lenient(lambda: has_weights(sweep.store, trial)))

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
                f"eval/{k}": v for k, v in _evaluate_now(kept, model).items() if v is not None
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
def _reading(folder: Path | None, is_read: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """What another run takes away while it is read can be found anew: raises StoreError then."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if folder is None or folder.exists() or is_read():
            raise
        raise StoreError(f"{folder} was deleted while it was read, by another run") from error


def _whole_weights(sweep: Sweep, trial: Trial) -> Path | None:
    """The folder of the trained weights, whole to the last byte; None where there are none.

    Damaged ones are put aside; what is there without a manifest may be in the making elsewhere.
    Raises StoreError if they cannot be read just now, which says nothing of them.
    """
    if not has_weights(sweep.store, trial):
        return None
    try:
        return Store(sweep.storage).fetch(_weights_path(sweep, trial))
    except DamagedError as error:
        log.warning("trial %s is trained again: %s", trial.name, error)
        return None


def _weights_path(sweep: Sweep, trial: Trial) -> str:
    return sweep.store.trial(trial.trial_id, "weights")


def _reached(sweep: Sweep, trial: Trial) -> int:
    """How far the trial is in the store, as a number that only grows: the step of its newest
    checkpoint, and beyond all steps once it has weights."""
    if has_weights(sweep.store, trial):
        return 10**9
    return newest_step(sweep, trial)


def _evaluate(kept: Kept, trial: Trial, weights: Path, should_stop: Callable[[], bool]) -> None:
    from prefsweep.workers.models import load_trained

    with _reading(weights):
        policy = load_trained(kept.sweep.policy_source(), weights, kept.policy)
    reference = _reference_of(kept, policy)
    evaluate_and_publish(
        kept, trial.trial_id, policy, reference, trial.spec.beta, should_stop=should_stop
    )


def _evaluate_now(kept: Kept, model: Any) -> Metrics:
    """An evaluation on the way; leaves the trainer's mode and tokenizer as they were."""
    tokenizer = kept.tokenizer
    padding_side, tokenizer.padding_side = tokenizer.padding_side, "left"
    was_training = model.training
    model.eval()
    try:
        return evaluate_fitting(kept, model, _reference_of(kept, model))[0]
    finally:
        model.train(was_training)
        tokenizer.padding_side = padding_side


def _reference_of(kept: Kept, policy: Any) -> Any:
    """The reference of a policy: its base with the adapter off, or the policy before training."""
    from peft import PeftModel

    if isinstance(policy, PeftModel):

        @contextmanager
        def adapter_off() -> Iterator[PeftModel]:
            with policy.disable_adapter():
                yield policy

        return adapter_off
    reference = kept.reference(policy.dtype)
    return lambda: nullcontext(reference)


def _lenient(should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """What cannot be read for the moment is not so: no request was made, no weights are there."""

    def asked() -> bool:
        try:
            return should_stop()
        except StoreError:
            return False

    return asked


def _release_memory() -> None:
    from prefsweep.workers.memory import release_memory

    release_memory()
