"""Runs one trial from start to end: its attempts, its retries, and the record of its outcome.

Every outcome is recorded in the trial's status.json. Transient failures are retried here, from the
newest checkpoint; an exception is only raised if the trial needs another process. training.py and
evaluation.py do the work.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from prefsweep.orchestrator.state.stop import polled_stop
from prefsweep.orchestrator.state.sweep import Sweep, Trial
from prefsweep.orchestrator.state.trial_record import TrialRecord, has_weights
from prefsweep.orchestrator.tasks.cache import WorkerCache
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
    progress,
    reading,
    train_and_publish,
    verified_weights,
    weights_path,
)
from prefsweep.orchestrator.tasks.trial_output import TrialOutput
from prefsweep.sweeps.errors import DamagedError, OutOfMemory, StopRequested, StoreError
from prefsweep.sweeps.records import Failure, Status

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSlot:
    """The resources of the process that runs a trial."""

    gpus: float = 0.0
    """The trial's share of a GPU; below 1, a later launch may give it a larger one."""
    is_worker: bool = False
    """Whether this is a worker process, which another worker can replace."""


class BrokenWorkerError(RuntimeError):
    """This process cannot continue (its GPU context is lost); a new process can."""


def run_trial(
    cache: WorkerCache,
    trial: Trial,
    slot: WorkerSlot = WorkerSlot(),
    attempts: "Attempts | None" = None,
) -> None:
    """Complete a trial: its weights, then its evaluation. Failures are recorded, not raised.

    The trial is retried according to `retries`; `attempts` are its attempts in this process. It
    ends as interrupted after a stop request, and as pending if it needs a larger share of a GPU.
    Raises BrokenWorkerError if this worker must be replaced, and StoreError if the outcome cannot
    be recorded.
    """
    attempts = attempts or Attempts(cache.sweep, trial, slot)
    with TrialOutput(cache.sweep, trial, prints=slot.is_worker) as output:
        try:
            attempts.run(output, lambda: _train_and_evaluate(cache, attempts, output))
        finally:
            release_memory()


class Attempts:
    """The attempts of one trial in one process; decides whether and when to retry."""

    def __init__(self, sweep: Sweep, trial: Trial, slot: WorkerSlot) -> None:
        self.trial, self._slot = trial, slot
        self._sweep, self._retries = sweep, sweep.spec.retries
        self.state = TrialRecord(sweep, trial, slot.gpus)
        self.should_stop = lenient(polled_stop(sweep.store, sweep.spec.name))
        self._has_looked = self._has_begun = False

    def run(self, output: TrialOutput, work: Callable[[], None]) -> None:
        """Make attempts until one of them, or a stop request, ends the trial."""
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
            del error  # its traceback references the tensors of its frames
            release_memory()
            seconds = self.delay_after(failure)
            if seconds:
                pause(seconds, self.should_stop)

    def delay_after_death(self, output: TrialOutput) -> float | None:
        """Seconds to wait before the first attempt if the trial's previous process died.

        Returns None, and records the failure, if the trial's processes died too often.
        """
        state, has_looked, self._has_looked = self.state, self._has_looked, True
        if state.found != Status.RUNNING or has_looked:
            return 0.0
        has_progressed = progress(self._sweep, self.trial) > state.progress
        is_stalled = state.stalled_attempts >= min(2, self._retries.max_attempts)
        if state.group > 1 and is_stalled and not has_progressed:
            self.halve_group(output)  # another trial of the group may kill the process
        if state.stalled_attempts < self._retries.max_attempts or has_progressed:
            output.note(f"attempt {state.attempts} ended with its process")
            return 0.0 if has_progressed else delay_s(self._retries, max(1, state.stalled_attempts))
        failure = replace(state.last_failure or DIED, log_path=output.path)
        self.write(Status.FAILED, failure)
        return None

    def begin(self, output: TrialOutput) -> None:
        """Begin an attempt, or continue the current one."""
        state = self.state
        if self._has_begun:
            state.write(Status.RUNNING)
            return
        state.begin(progress(self._sweep, self.trial))
        self._has_begun = True
        output.note(f"attempt {state.attempts}, micro-batch halved {state.halvings} times")

    def settle(self, error: Exception, output: TrialOutput) -> Failure | None:
        """End an attempt with an error. Returns the failure if the trial is to be retried in this
        process. Otherwise it records the trial's status and returns None."""
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
                "trial %s: %s; retrying with forward passes half as large",
                self.trial.name,
                failure.message,
            )
            return 0.0
        seconds = delay_s(self._retries, state.stalled_attempts)
        log.warning(
            "trial %s: attempt %d failed (%s); retrying in %.1f s",
            self.trial.name,
            state.attempts,
            failure.message,
            seconds,
        )
        state.last_failure = failure
        return seconds

    def broken(self, error: Exception, failure: Failure) -> BrokenWorkerError | None:
        """The error that ends this process, if its GPU context is lost; the trial is then recorded
        as if the process had died."""
        if not self._slot.is_worker or not is_broken_device(error):
            return None
        self.write(Status.RUNNING, failure)
        return BrokenWorkerError(failure.message)

    def failure_of(self, error: Exception, output: TrialOutput) -> Failure:
        """Convert an error into the failure that is recorded for the trial."""
        failure = classify(error, self._sweep.store.display(""))
        return replace(failure, log_path=output.path)

    def halve_group(self, output: TrialOutput) -> None:
        """Halve the maximum size of the trial's group. This counts as progress."""
        self._has_begun = False
        self.state.halve_group()
        output.note(f"from now on in groups of at most {self.state.largest_group}")

    def write(self, status: Status, failure: Failure | None = None) -> None:
        """Record a status, and retry while the storage fails, so that the outcome is known."""
        for num_failed in range(1, self._retries.max_attempts + 1):
            try:
                self.state.write(status, failure)
                return
            except (StoreError, OSError):
                if num_failed == self._retries.max_attempts:
                    raise
                pause(delay_s(self._retries, num_failed), lambda: False)

    def _attempt(self, output: TrialOutput, work: Callable[[], None]) -> Exception | None:
        """Make one attempt; returns its error, or None if it succeeded."""
        try:
            self.begin(output)
            work()
        except Exception as error:  # a failure is recorded, and other trials continue
            return error
        self.write(Status.SUCCEEDED)
        output.note("succeeded")
        return None

    def _what_next(self, error: Exception, failure: Failure) -> Status:
        """RUNNING: retry here; PENDING: retry with a larger share of the GPU; FAILED: no retry."""
        state = self.state
        if failure.kind == "out_of_memory":
            if isinstance(error, OutOfMemory) and error.can_halve:
                state.halvings += 1
                state.stalled_attempts = 0  # a smaller batch counts as progress
                return Status.RUNNING
            if 0 < self._slot.gpus < 1:
                state.larger_shares += 1
                return Status.PENDING
            return Status.FAILED
        if failure.kind == "deterministic" or state.stalled_attempts >= self._retries.max_attempts:
            return Status.FAILED
        # the damaged artefact must be rebuilt by its stage, which runs before the trials
        if isinstance(error, DamagedError):
            return Status.FAILED
        if (broken := self.broken(error, failure)) is not None:
            raise broken from None
        return Status.RUNNING


def restart_from_scratch(sweep: Sweep, trial: Trial) -> None:
    """Delete the files and the record of a failed trial, unless its weights are finished.

    With finished weights, only the evaluation failed. Weights and evaluations are kept because
    other sweeps in the store may use them.
    """
    if has_weights(sweep.store, trial):
        log.info("trial %s: its weights are finished and kept; it is evaluated again", trial.name)
        return
    for part in ("checkpoints", "weights", "evaluations", "metrics.jsonl", "status.json"):
        sweep.store.delete(sweep.store.trial(trial.trial_id, part))


def _train_and_evaluate(cache: WorkerCache, attempts: Attempts, output: TrialOutput) -> None:
    from prefsweep.workers.models import load_trained

    sweep, trial = cache.sweep, attempts.trial
    try:
        weights = verified_weights(sweep, trial)
        if weights is None:
            train_and_publish(cache, trial, attempts.state, attempts.should_stop, output)
            weights = sweep.store.fetch(weights_path(sweep, trial))
        delete_checkpoints(sweep, trial)
        if sweep.store.manifest(sweep.evaluation_path(trial.trial_id)) is None:
            with reading(weights):
                policy = load_trained(sweep.policy_source(), weights, cache.policy)
            beta = trial.spec.beta
            evaluate_trained(cache, trial.trial_id, policy, beta, attempts.should_stop)
    finally:
        sweep.store.drop_copies(sweep.store.trial(trial.trial_id))


def release_memory() -> None:
    """Release the unreferenced memory of an attempt."""
    from prefsweep.workers.memory import release_memory

    release_memory()
