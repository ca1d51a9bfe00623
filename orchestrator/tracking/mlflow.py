"""MLflow: one run per trial, in an experiment of the server that MLFLOW_TRACKING_URI names.

A driver that resumes a sweep continues the runs of its trials; a metric that a run has at a step is
not logged again.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

from prefsweep.orchestrator.tracking.rows import STEP, summary, without_secrets
from prefsweep.sweeps.records import Status, TrialResult
from prefsweep.sweeps.spec import MlflowSpec

TAG = "prefsweep.trial"
"""Tag of a run with the sweep and the ID of its trial."""
MAX_PARAM = 500
"""Characters of a parameter's value; older servers take no more."""
_ENDS = {Status.SUCCEEDED: "FINISHED", Status.INTERRUPTED: "KILLED"}


class Mlflow:
    """A Tracker that logs to MLflow."""

    title = "MLflow"

    def __init__(self, spec: MlflowSpec, sweep: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        self._client: MlflowClient = MlflowClient()
        self._sweep = sweep
        self._runs: dict[str, str] = {}
        self._logged: dict[str, set[tuple[str, int]]] = {}
        """Trial -> metrics that its run has, with their steps."""
        self._steps: dict[str, int] = {}
        found = self._client.get_experiment_by_name(spec.experiment)
        self._experiment = (
            self._client.create_experiment(spec.experiment)
            if found is None
            else found.experiment_id
        )

    def start_trial(self, trial_id: str, name: str, config: Mapping[str, object]) -> None:
        if trial_id in self._runs:
            return
        tag = f"{self._sweep}/{trial_id}"
        found: list[Any] = list(
            self._client.search_runs([self._experiment], f"tags.`{TAG}` = '{tag}'", max_results=1)
        )
        if found:
            run: Any = found[0]
            self._client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = self._client.create_run(self._experiment, run_name=name, tags={TAG: tag})
            for key, value in without_secrets(config).items():
                self._client.log_param(run.info.run_id, key, str(value)[:MAX_PARAM])
        self._runs[trial_id], self._steps[trial_id] = run.info.run_id, 0
        self._logged[trial_id] = {
            (metric.key, metric.step)
            for key in run.data.metrics
            for metric in self._client.get_metric_history(run.info.run_id, key)
        }

    def log(self, trial_id: str, row: Mapping[str, float]) -> None:
        if trial_id not in self._runs:
            return
        self._steps[trial_id] = int(row.get(STEP, self._steps[trial_id]))
        self._log(trial_id, {name: value for name, value in row.items() if name != STEP})

    def finish_trial(self, result: TrialResult) -> None:
        if result.trial_id not in self._runs:
            return
        final = {
            f"final/{name}": value
            for name, value in summary(result).items()
            if isinstance(value, float)
        }
        self._log(result.trial_id, final)
        run_id = self._runs.pop(result.trial_id)
        self._client.set_terminated(run_id, _ENDS.get(result.status, "FAILED"))

    def close(self) -> None:
        for run_id in self._runs.values():
            self._client.set_terminated(run_id, _ENDS[Status.INTERRUPTED])

    def _log(self, trial_id: str, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        step, known = self._steps[trial_id], self._logged[trial_id]
        now_ms = int(time.time() * 1000)
        new = [
            Metric(name, value, now_ms, step)
            for name, value in values.items()
            if (name, step) not in known
        ]
        if new:
            self._client.log_batch(self._runs[trial_id], metrics=new)
            known.update((metric.key, step) for metric in new)
