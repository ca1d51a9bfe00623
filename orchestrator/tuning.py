"""Trials -> Ray Tune. Tune schedules; the store remembers.

Every launch is a fresh Tuner over what is unfinished. A trial's own failure is recorded by
`run_trial` and never reaches Tune; what Tune sees are workers that die.
"""

import logging
import tempfile
from collections.abc import Sequence
from typing import Any

from prefsweep.orchestrator.border import set_up_worker
from prefsweep.orchestrator.kept import Kept
from prefsweep.orchestrator.secrets import keep_from_tune
from prefsweep.orchestrator.sweep import Sweep, Trial
from prefsweep.orchestrator.trials import mark, run_trial
from prefsweep.sweeps.records import Failure, Status

log = logging.getLogger(__name__)

MAX_LAUNCHES = 3
MAX_WORKER_DEATHS = 2
"""Deaths of a trial's worker that Tune itself mends within a launch."""


def tune_trials(sweep: Sweep, trials: Sequence[Trial], gpus_per_trial: float) -> None:
    """Run all trials to an end; each is succeeded or failed in the store afterwards."""
    unfinished, error = list(trials), ""
    for _ in range(MAX_LAUNCHES):
        error = _launch(sweep, unfinished, gpus_per_trial)
        unfinished = [trial for trial in unfinished if not _has_ended(sweep, trial)]
        if not unfinished:
            return
        log.warning("%d trials did not come to an end and are launched again", len(unfinished))
    for trial in unfinished:
        message = f"it did not come to an end in {MAX_LAUNCHES} launches. {error}".strip()
        failure = Failure("transient", message, "", "run the same command again")
        mark(sweep, trial, Status.FAILED, failure)


def _launch(sweep: Sweep, trials: Sequence[Trial], gpus_per_trial: float) -> str:
    """One Tuner over `trials`; returns what went wrong with it, or ""."""
    from ray import tune

    keep_from_tune()
    by_id = {trial.trial_id: trial for trial in trials}
    threads = sweep.spec.resources.threads_per_worker
    kept = Kept(sweep)  # each worker has its own, for all its trials

    def trainable(config: dict[str, Any]) -> dict[str, int]:
        set_up_worker(threads)
        run_trial(kept, by_id[config["trial_id"]])
        return {"ended": 1}

    resources = {"CPU": sweep.spec.resources.cpus_per_worker, "GPU": gpus_per_trial}
    with tempfile.TemporaryDirectory(prefix="prefsweep-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            param_space={"trial_id": tune.grid_search(list(by_id))},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                name=sweep.spec.name,
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_WORKER_DEATHS),
            ),
        )
        try:
            errors = tuner.fit().errors
        except RuntimeError as error:  # Tune gives up as a whole when Ray kills a worker for memory
            return str(error)
    return str(errors[0]) if errors else ""


def _has_ended(sweep: Sweep, trial: Trial) -> bool:
    status = sweep.store.read_json(sweep.store.trial(trial.trial_id, "status.json")) or {}
    return status.get("status") in (Status.SUCCEEDED, Status.FAILED)
