"""One trial from start to end, wherever it runs: when it is tried again, and what is recorded.

Whatever happens ends in the trial's status.json. What may pass is tried again here, from the newest
checkpoint; an exception leaves this file only where a fresh process has to go on. training.py and
evaluation.py do the work.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from prefsweep.orchestrator.state.stop import polled_stop
from prefsweep.orchestrator.state.sweep import Sweep, Trial
from prefsweep.orchestrator.state.trial_record import TrialLog, has_weights
from prefsweep.orchestrator.tasks.cache import Kept
from prefsweep.orchestrator.tasks.checkpoints import delete_checkpoints
from prefsweep.orchestrator.tasks.evaluation import evaluate_trained
from prefsweep.orchestrator.tasks.failures import (
    DIED,
    classify,
    delay_s,
    is_broken_device,
    pause,
)
from prefsweep.orchestrator.tasks.training import (
    lenient,
    reached,
    reading,
    train_and_publish,
    weights_path,
    whole_weights,
)
from prefsweep.orchestrator.tasks.trial_output import TrialOutput
from prefsweep.sweeps.errors import DamagedError, OutOfMemory, StopRequested, StoreError
from prefsweep.sweeps.records import Failure, Status

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


def run_trial(
    kept: Kept, trial: Trial, place: Place = Place(), attempts: "Attempts | None" = None
) -> None:
    """Do what is missing of a trial: weights, then evaluation. Records failures, raises none.

    It is tried again as `retries` says; `attempts` are those it has had in this process. A stop
    request ends it as interrupted; wanting more of a GPU, as pending. Raises BrokenWorkerError in a
    worker that has to be replaced, and StoreError if the outcome cannot be written down.
    """
    attempts = attempts or Attempts(kept.sweep, trial, place)
    with TrialOutput(kept.sweep, trial, prints=place.is_worker) as output:
        try:
            attempts.run(output, lambda: _train_and_evaluate(kept, attempts, output))
        finally:
            release_memory()


class Attempts:
    """The attempts of one trial in one process: whether there is another one, and after what."""

    def __init__(self, sweep: Sweep, trial: Trial, place: Place) -> None:
        self.trial, self._place = trial, place
        self._sweep, self._retries = sweep, sweep.spec.retries
        self.state = TrialLog(sweep, trial, place.gpus)
        self.should_stop = lenient(polled_stop(sweep.store, sweep.spec.name))
        self._has_looked = self._has_begun = False

    def run(self, output: TrialOutput, work: Callable[[], None]) -> None:
        """Attempts, until one of them, or a stop request, settles the trial."""
        seconds = self.delay_after_death(output)
        if seconds is None:
            return
        if seconds:
            pause(seconds, self.should_stop)
        self.state.group = 1
        while True:
            if self.should_stop():
                self.write(Status.INTERRUPTED)
                return
            error = self._attempt(output, work)
            failure = None if error is None else self.settle(error, output)
            if failure is None:
                return
            del error  # with its traceback go the tensors of its frames
            release_memory()
            seconds = self.delay_after(failure)
            if seconds:
                pause(seconds, self.should_stop)

    def delay_after_death(self, output: TrialOutput) -> float | None:
        """Seconds to wait before the first attempt where the process that had the trial died; None,
        recorded, if it has died too often."""
        state, has_looked, self._has_looked = self.state, self._has_looked, True
        if state.found != Status.RUNNING or has_looked:
            return 0.0
        came_further = reached(self._sweep, self.trial) > state.reached
        if state.group > 1 and state.fruitless > 1 and not came_further:
            self.halve_group(output)  # one of its trials may be what ends the process
        if state.fruitless < self._retries.max_attempts or came_further:
            output.note(f"attempt {state.attempts} ended with its process")
            return 0.0 if came_further else delay_s(self._retries, max(1, state.fruitless))
        failure = replace(state.last_failure or DIED, log_path=output.path)
        self.write(Status.FAILED, failure)
        return None

    def begin(self, output: TrialOutput) -> None:
        """Begin an attempt, or go on with the one that has begun."""
        state = self.state
        if self._has_begun:
            state.write(Status.RUNNING)
            return
        state.begin(reached(self._sweep, self.trial))
        self._has_begun = True
        output.note(f"attempt {state.attempts}, micro-batch halved {state.halvings} times")

    def settle(self, error: Exception, output: TrialOutput) -> Failure | None:
        """End an attempt by its error: the failure after which there is another attempt here, or
        None where the trial's status is recorded."""
        self._has_begun = False
        if isinstance(error, StopRequested):
            output.note(str(error))
            self.write(Status.INTERRUPTED)
            return None
        failure = self.failure_of(error, output)
        output.note(failure.traceback)
        status = self._what_next(error, failure)
        if status == Status.RUNNING:
            return failure
        self.write(status, failure)
        return None

    def delay_after(self, failure: Failure) -> float:
        """Seconds to wait before the next attempt."""
        state = self.state
        if failure.kind == "out_of_memory":
            log.warning(
                "trial %s: %s; again with half of that in a forward pass",
                self.trial.name,
                failure.message,
            )
            return 0.0
        seconds = delay_s(self._retries, state.fruitless)
        log.warning(
            "trial %s: attempt %d failed (%s); again in %.1f s",
            self.trial.name,
            state.attempts,
            failure.message,
            seconds,
        )
        state.last_failure = failure
        return seconds

    def broken(self, error: Exception, failure: Failure) -> BrokenWorkerError | None:
        """The error to end this process with, if it is of no use any more; the trial is recorded as
        if the process had died."""
        if not self._place.is_worker or not is_broken_device(error):
            return None
        self.write(Status.RUNNING, failure)
        return BrokenWorkerError(failure.message)

    def failure_of(self, error: Exception, output: TrialOutput) -> Failure:
        """What an error means for the trial."""
        failure = classify(error, self._sweep.store.display(""))
        return replace(failure, log_path=output.path)

    def halve_group(self, output: TrialOutput) -> None:
        """Share a group with half as many trials from now on, which is another chance."""
        self._has_begun = False
        self.state.halve_group()
        output.note(f"from now on in groups of at most {self.state.largest_group}")

    def write(self, status: Status, failure: Failure | None = None) -> None:
        """The outcome must be known: while storage fails, it is written again."""
        for num_failed in range(1, self._retries.max_attempts + 1):
            try:
                self.state.write(status, failure)
                return
            except (StoreError, OSError):
                if num_failed == self._retries.max_attempts:
                    raise
                pause(delay_s(self._retries, num_failed), lambda: False)

    def _attempt(self, output: TrialOutput, work: Callable[[], None]) -> Exception | None:
        """One attempt; its error, if it has not succeeded."""
        try:
            self.begin(output)
            work()
        except Exception as error:  # the trial's border: a failure is data, and others go on
            return error
        self.write(Status.SUCCEEDED)
        output.note("succeeded")
        return None

    def _what_next(self, error: Exception, failure: Failure) -> Status:
        """RUNNING: again here; PENDING: again with a larger share of the GPU; FAILED."""
        state = self.state
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
        if (broken := self.broken(error, failure)) is not None:
            raise broken from None
        return Status.RUNNING


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


def _train_and_evaluate(kept: Kept, attempts: Attempts, output: TrialOutput) -> None:
    from prefsweep.workers.models import load_trained

    sweep, trial = kept.sweep, attempts.trial
    try:
        weights = whole_weights(sweep, trial)
        if weights is None:
            train_and_publish(kept, trial, attempts.state, attempts.should_stop, output)
            weights = sweep.store.fetch(weights_path(sweep, trial))
        delete_checkpoints(sweep, trial)
        if sweep.store.manifest(sweep.evaluation_path(trial.trial_id)) is None:
            with reading(weights):
                policy = load_trained(sweep.policy_source(), weights, kept.policy)
            beta = trial.spec.beta
            evaluate_trained(kept, trial.trial_id, policy, beta, attempts.should_stop)
    finally:
        sweep.store.drop_copies(sweep.store.trial(trial.trial_id))


def release_memory() -> None:
    """Give back what an attempt has taken and nothing refers to."""
    from prefsweep.workers.memory import release_memory

    release_memory()
