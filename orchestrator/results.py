"""The store's artefacts of one sweep -> SweepResults, what reports and tables are made of."""

from prefsweep.orchestrator.status import trial_status
from prefsweep.orchestrator.store import environment
from prefsweep.orchestrator.sweep import UNTRAINED, Sweep, Trial
from prefsweep.orchestrator.trials import parse_metrics
from prefsweep.sweeps.records import (
    EvaluationSample,
    Metrics,
    StageResult,
    Status,
    SweepResults,
    TrialResult,
)
from prefsweep.workers import tables


def read_results(sweep: Sweep, *, details: bool = True) -> SweepResults:
    """All results of a sweep as they are now, the untrained policy first.

    Without `details` they lack their curves and samples, which take the time to read.
    """
    untrained = _untrained(sweep, details=details)
    rows = [] if untrained is None else [untrained]
    rows += [read_result(sweep, trial, details=details) for trial in sweep.trials]
    return SweepResults(
        sweep=sweep.spec.name,
        spec=sweep.spec.model_dump(mode="json"),
        stages=_stages(sweep),
        results=rows,
        environment=environment(),
    )


def read_result(sweep: Sweep, trial: Trial, *, details: bool = True) -> TrialResult:
    """One trial's row, with its curves and samples if `details` are wanted."""
    store, status = sweep.store, trial_status(sweep, trial)
    succeeded = status.status == Status.SUCCEEDED
    metrics, samples = (
        _evaluation(sweep, trial.trial_id, details=details) if succeeded else ({}, [])
    )
    weights = store.manifest(store.trial(trial.trial_id, "weights"))
    notes = {} if weights is None else weights.notes
    if "gpu_memory_gib" in notes:
        metrics["gpu_memory_gib"] = notes["gpu_memory_gib"]
    return TrialResult(
        trial_id=trial.trial_id,
        name=trial.name,
        trial=trial.spec,
        status=status.status,
        metrics=metrics,
        train_seconds=notes.get("train_seconds"),
        failure=status.failure,
        history=_history(sweep, trial) if details else [],
        samples=samples,
    )


def _history(sweep: Sweep, trial: Trial) -> list[dict[str, float]]:
    return parse_metrics(sweep.store.read(sweep.store.trial(trial.trial_id, "metrics.jsonl")))


def _untrained(sweep: Sweep, *, details: bool) -> TrialResult | None:
    if sweep.store.manifest(sweep.evaluation_path(UNTRAINED)) is None:
        return None
    metrics, samples = _evaluation(sweep, UNTRAINED, details=details)
    return TrialResult(UNTRAINED, UNTRAINED, None, Status.SUCCEEDED, metrics, samples=samples)


def _evaluation(
    sweep: Sweep, trial_id: str, *, details: bool
) -> tuple[Metrics, list[EvaluationSample]]:
    path = sweep.evaluation_path(trial_id)
    metrics: Metrics = sweep.store.read_json(f"{path}/metrics.json") or {}
    if not details:
        return metrics, []
    folder = sweep.store.fetch(path)
    return metrics, tables.read_records(EvaluationSample, [folder / "samples.parquet"])


def _stages(sweep: Sweep) -> list[StageResult]:
    stages: list[StageResult] = []
    for name in sweep.stages:
        manifest = sweep.store.manifest(sweep.path(name))
        if manifest is not None:
            fingerprint = manifest.fingerprint
            stages.append(
                StageResult(name, fingerprint, manifest.rows, manifest.seconds, manifest.notes)
            )
    return stages
