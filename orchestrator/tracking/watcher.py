"""Polls the stored records of running trials; logs their results, sends their metrics to trackers.

One thread polls status.json and metrics.jsonl, the same way for every cluster. Its errors cannot
stop a trial.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prefsweep.orchestrator.results.results import read_result, read_results
from prefsweep.orchestrator.results.status import StatusReader, describe
from prefsweep.orchestrator.state.sweep import Sweep, Trial
from prefsweep.orchestrator.state.trial_record import parse_metrics
from prefsweep.orchestrator.store.scratch import private_folder
from prefsweep.orchestrator.tracking.mirrors import Mirror, QueuedMirror
from prefsweep.orchestrator.tracking.mlflow import Mlflow
from prefsweep.orchestrator.tracking.rows import trial_config
from prefsweep.orchestrator.tracking.tensorboard import TensorBoard
from prefsweep.orchestrator.tracking.wandb import WandbMirror
from prefsweep.sweeps.errors import SweepError
from prefsweep.sweeps.records import Status

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
ENDED = (Status.SUCCEEDED, Status.FAILED, Status.INTERRUPTED)


class TrialWatch:
    """Watches trials while the `with` block runs. On KeyboardInterrupt it returns at once and W&B
    keeps what it has received."""

    def __init__(self, sweep: Sweep, trials: Sequence[Trial]) -> None:
        self._sweep, self._open = sweep, list(trials)
        self._reader = StatusReader(sweep)
        self._num_logged: dict[str, int] = {}
        self._num_ended, self._num_trials = 0, len(trials)
        if sweep.store.is_local:
            folder = Path(sweep.store.display(sweep.store.sweep(sweep.spec.name)))
        else:
            folder = private_folder("prefsweep-wandb", keep=True)
        self._mirrors = list(_mirrors(sweep, folder))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="trial-watch")

    def __enter__(self) -> "TrialWatch":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._stop.set()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            return  # do not wait for a dead server or failing storage
        self._thread.join()
        self._poll()
        if self._mirrors:
            pairs = self._artifact("pairs", self._sweep.path("pairs"))
            results = read_results(self._sweep)
            for mirror in self._mirrors:
                mirror.finish(results, pairs)

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self._poll()

    def _poll(self) -> None:
        try:
            statuses = self._reader.trials(self._open)
        except (SweepError, OSError) as error:  # retried by the next poll
            log.debug("could not read the trials: %s", error)
            return
        for trial, status in zip(list(self._open), statuses, strict=True):
            try:
                self._poll_trial(trial, status.status)
            except (SweepError, OSError) as error:
                log.debug("could not read trial %s: %s", trial.name, error)

    def _poll_trial(self, trial: Trial, status: Status) -> None:
        sweep, trial_id = self._sweep, trial.trial_id
        if status == Status.PENDING:
            return
        if trial_id not in self._num_logged:
            self._num_logged[trial_id] = 0
            config = trial_config(trial, sweep.spec.name)
            for mirror in self._mirrors:
                mirror.trial_started(trial_id, trial.name, config)
        data = sweep.store.read_record(sweep.store.trial(trial_id, "metrics.jsonl"))
        records = parse_metrics(data)
        num_logged = self._num_logged[trial_id]
        for record in records[num_logged:]:
            for mirror in self._mirrors:
                mirror.log(trial_id, dict(record))
        # a resumed trial repeats lines after its checkpoint that were logged before
        self._num_logged[trial_id] = max(num_logged, len(records))
        if status in ENDED:
            result = read_result(sweep, trial)
            path = sweep.store.trial(trial_id, "weights")
            for mirror in self._mirrors:
                mirror.trial_finished(result, self._artifact("weights", path))
            self._open.remove(trial)
            self._num_ended += 1
            log.info("trial %d/%d %s", self._num_ended, self._num_trials, describe(result))

    def _artifact(self, kind: str, path: str) -> Callable[[], Path] | None:
        """A function that fetches an artefact for W&B; None if W&B is not to have it."""
        if kind not in self._sweep.spec.tracking.wandb.log_artifacts:
            return None
        return lambda: self._sweep.store.fetch(path)


def _mirrors(sweep: Sweep, folder: Path) -> Iterator[Mirror]:
    """The trackers that the spec names; their files go to `folder`."""
    tracking, name = sweep.spec.tracking, sweep.spec.name
    wandb = WandbMirror(tracking.wandb, name, sweep.spec.model_dump(mode="json"), folder)
    if wandb.mode != "disabled":
        yield wandb
    if tracking.tensorboard:
        yield QueuedMirror(lambda: TensorBoard(folder), TensorBoard.title)
    if (mlflow := tracking.mlflow) is not None:
        yield QueuedMirror(lambda: Mlflow(mlflow, name), Mlflow.title)
