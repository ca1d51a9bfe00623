"""The store's artefacts of one sweep -> SweepResults, what reports and tables are made of."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from prefsweep.orchestrator.results.histograms import read_data_facts
from prefsweep.orchestrator.state.sweep import UNTRAINED, Sweep, Trial
from prefsweep.orchestrator.state.sweep_record import read_state
from prefsweep.orchestrator.state.trial_record import parse_metrics, read_metrics, trial_status
from prefsweep.orchestrator.store.store import Manifest, environment
from prefsweep.sweeps.errors import DamagedError
from prefsweep.sweeps.records import (
    DataFacts,
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

    Without `details` they lack curves, samples and distributions, which take the time to read.
    """
    state = read_state(sweep.store, sweep.spec.name)
    began = state.first_started
    untrained = _untrained(sweep, began, details=details)
    rows = [] if untrained is None else [untrained]
    rows += [read_result(sweep, trial, began, details=details) for trial in sweep.trials]
    made = {name: sweep.store.manifest(sweep.path(name)) for name in _stage_names(sweep)}
    missing = [name for name, manifest in made.items() if manifest is None]
    return SweepResults(
        sweep=sweep.spec.name,
        spec=sweep.spec.model_dump(mode="json"),
        stages=_stages(made, began),
        results=rows,
        environment=_environments(manifest for manifest in made.values() if manifest is not None),
        data=read_data_facts(sweep) if details else DataFacts(),
        missing=missing if untrained is not None else [*missing, UNTRAINED],
        commands=list(state.commands),
        quarantined=_quarantined(sweep),
    )


def _quarantined(sweep: Sweep) -> dict[str, dict[str, str]]:
    """The prompts that the sweep leaves out, with their texts where it has them."""
    left_out, texts = sweep.inputs.quarantined, dict[str, str]()
    for stage in ("prompts", "eval_prompts") if left_out else ():
        if stage in sweep.stages and sweep.store.manifest(sweep.path(stage)):
            columns = sweep.store.read_columns(sweep.path(stage), ("prompt_id", "text"))
            names = ("prompt_id", "text")
            texts |= dict(zip(*(columns[name].to_pylist() for name in names), strict=True))
    return {
        stage: {prompt_id: texts.get(prompt_id, "") for prompt_id in prompt_ids}
        for stage, prompt_ids in left_out.items()
    }


def _stage_names(sweep: Sweep) -> list[str]:
    """The sweep's stages; the stage of the prompts makes two artefacts."""
    names = list(sweep.stages)
    if "eval_prompts" not in names:
        names.insert(names.index("prompts") + 1, "eval_prompts")
    return names


def read_result(
    sweep: Sweep, trial: Trial, began: float = 0.0, *, details: bool = True
) -> TrialResult:
    """One trial's row, with its curves and samples if `details` are wanted.

    `began` is when the sweep did, 0 if that is not known.
    """
    store, status = sweep.store, trial_status(sweep, trial)
    evaluation = _Evaluation()
    if status.status == Status.SUCCEEDED:
        evaluation = _evaluation(sweep, trial.trial_id, details=details)
    metrics, weights = evaluation.metrics, store.manifest(store.trial(trial.trial_id, "weights"))
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
        samples=evaluation.samples,
        evaluate_seconds=evaluation.seconds,
        found=_is_older(weights, began),
    )


def _history(sweep: Sweep, trial: Trial) -> list[dict[str, float]]:
    return parse_metrics(
        sweep.store.read_record(sweep.store.trial(trial.trial_id, "metrics.jsonl"))
    )


@dataclass(frozen=True)
class _Evaluation:
    metrics: Metrics = field(default_factory=dict[str, float | None])
    samples: list[EvaluationSample] = field(default_factory=list[EvaluationSample])
    seconds: float | None = None


def _untrained(sweep: Sweep, began: float, *, details: bool) -> TrialResult | None:
    manifest = sweep.store.manifest(sweep.evaluation_path(UNTRAINED))
    if manifest is None:
        return None
    evaluation = _evaluation(sweep, UNTRAINED, details=details)
    return TrialResult(
        UNTRAINED,
        UNTRAINED,
        None,
        Status.SUCCEEDED,
        evaluation.metrics,
        samples=evaluation.samples,
        evaluate_seconds=evaluation.seconds,
        found=_is_older(manifest, began),
    )


def _evaluation(sweep: Sweep, trial_id: str, *, details: bool) -> _Evaluation:
    path = sweep.evaluation_path(trial_id)
    manifest = sweep.store.manifest(path)
    metrics = read_metrics(sweep, trial_id)
    seconds = None if manifest is None else manifest.seconds
    if not details:
        return _Evaluation(metrics, [], seconds)
    file = sweep.store.fetch(path) / "samples.parquet"
    try:
        samples = tables.read_records(EvaluationSample, [file])
    except (FileNotFoundError, pa.ArrowException, KeyError) as error:
        sweep.store.put_aside(path)
        raise DamagedError(
            f"{sweep.store.display(path)}/samples.parquet cannot be read ({error}). The evaluation "
            "was put aside; run the sweep again, which makes it anew"
        ) from None
    return _Evaluation(metrics, samples, seconds)


def _stages(made: Mapping[str, Manifest | None], began: float) -> list[StageResult]:
    return [
        StageResult(
            name,
            manifest.fingerprint,
            manifest.rows,
            manifest.seconds,
            manifest.notes,
            found=_is_older(manifest, began),
        )
        for name, manifest in made.items()
        if manifest is not None
    ]


def _is_older(manifest: Manifest | None, began: float) -> bool:
    """Whether an artefact was there before the first run of the sweep began (0: unknown)."""
    return manifest is not None and 0 < manifest.made_at < int(began)


def _environments(manifests: Iterable[Manifest]) -> dict[str, str]:
    """What made the stages, or would make them here; several where they differ."""
    values: dict[str, list[str]] = {}
    for recorded in [manifest.environment for manifest in manifests] or [environment()]:
        for name, value in recorded.items():
            if name == "node":  # tells nobody anything after the cluster's end
                continue
            known = values.setdefault(name, [])
            if value not in known:
                known.append(value)
    return {name: ", ".join(known) for name, known in values.items()}
