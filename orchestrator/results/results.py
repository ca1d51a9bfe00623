"""Reads the stored artefacts of one sweep into SweepResults, the input of reports and tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefsweep.orchestrator.state.sweep import UNTRAINED, Sweep, Trial
from prefsweep.orchestrator.state.sweep_record import read_state
from prefsweep.orchestrator.state.trial_record import parse_metrics, read_metrics, trial_status
from prefsweep.orchestrator.store.store import Manifest, environment
from prefsweep.sweeps.errors import DamagedError
from prefsweep.sweeps.records import (
    DataFacts,
    EvaluationSample,
    Histogram,
    Metrics,
    StageResult,
    Status,
    SweepResults,
    TrialResult,
)
from prefsweep.workers import tables


def read_results(sweep: Sweep, *, details: bool = True) -> SweepResults:
    """Read the current results of a sweep, the untrained policy first.

    With `details=False`, curves, samples and distributions, which are slow to read, are left empty.
    """
    state = read_state(sweep.store, sweep.spec.name)
    began = state.first_started
    untrained = read_untrained(sweep, began, details=details)
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
    """Stage -> quarantined prompt id -> its text, "" if unknown."""
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
    """Names of the sweep's artefacts; the prompts stage makes two."""
    names = list(sweep.stages)
    if "eval_prompts" not in names:
        names.insert(names.index("prompts") + 1, "eval_prompts")
    return names


def read_result(
    sweep: Sweep, trial: Trial, began: float = 0.0, *, details: bool = True
) -> TrialResult:
    """Read the result of one trial, with its curves and samples if `details`.

    `began` is the time when the sweep was first started, 0 if unknown.
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


def read_untrained(sweep: Sweep, began: float = 0.0, *, details: bool = True) -> TrialResult | None:
    """Read the evaluation of the policy before training, as `read_result`; None without one."""
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
        sweep.store.set_aside(path)
        raise DamagedError(
            f"{sweep.store.display(path)}/samples.parquet cannot be read ({error}). The evaluation "
            "was set aside; run the sweep again to rebuild it"
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
    """Whether an artefact was made before the sweep was first started (`began`; 0: unknown)."""
    return manifest is not None and 0 < manifest.made_at < int(began)


def _environments(manifests: Iterable[Manifest]) -> dict[str, str]:
    """Versions and machine that made the stages, comma-separated if they differ.

    Without any stage, those of this process.
    """
    values: dict[str, list[str]] = {}
    for recorded in [manifest.environment for manifest in manifests] or [environment()]:
        for name, value in recorded.items():
            if name == "node":  # means nothing once the cluster has ended
                continue
            known = values.setdefault(name, [])
            if value not in known:
                known.append(value)
    return {name: ", ".join(known) for name, known in values.items()}


# --- distributions of the preference data ---------------------------------------------------------


NUM_BINS = 40


def read_data_facts(sweep: Sweep) -> DataFacts:
    """Read the distributions of the finished stages."""
    scored = _columns(sweep, "scores", ("score",))
    pairs = _columns(sweep, "pairs", ("chosen_score", "rejected_score"))
    tokens = _columns(sweep, "reference", ("chosen_ids", "rejected_ids"))
    scores: dict[str, np.ndarray] = {}
    margins = np.empty(0)
    if scored is not None:
        scores["all"] = _numbers(scored["score"])
    if pairs is not None:
        chosen, rejected = _numbers(pairs["chosen_score"]), _numbers(pairs["rejected_score"])
        scores |= {"chosen": chosen, "rejected": rejected}
        margins = chosen - rejected if len(chosen) == len(rejected) else margins
    lengths = (
        {}
        if tokens is None
        else {side: _lengths(tokens[f"{side}_ids"]) for side in ("chosen", "rejected")}
    )
    return DataFacts(
        scores=histogram(scores),
        margins=histogram({"pairs": margins}),
        lengths=histogram(lengths, whole=True),
    )


def histogram(series: Mapping[str, np.ndarray], *, whole: bool = False) -> Histogram | None:
    """Count values in at most NUM_BINS bins of equal width; None if no value is finite.

    With `whole`, edges lie halfway between integers, so every bin covers the same number of them.
    """
    finite = {name: values[np.isfinite(values)] for name, values in series.items()}
    drawn = {name: values for name, values in finite.items() if len(values)}
    if not drawn:
        return None
    low = min(float(values.min()) for values in drawn.values())
    high = max(float(values.max()) for values in drawn.values())
    edges = _whole_edges(low, high) if whole else _edges(low, high)
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in drawn.items()}
    return Histogram(edges=edges, counts=counts)


def _edges(low: float, high: float) -> list[float]:
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, NUM_BINS + 1).tolist()


def _whole_edges(low: float, high: float) -> list[float]:
    width = -(-(int(high - low) + 1) // NUM_BINS)
    num = -(-(int(high - low) + 1) // width)
    return [low - 0.5 + width * index for index in range(num + 1)]


def _columns(sweep: Sweep, stage: str, names: Sequence[str]) -> pa.Table | None:
    if stage not in sweep.stages or sweep.store.manifest(sweep.path(stage)) is None:
        return None
    return sweep.store.read_columns(sweep.path(stage), names)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """The column as floats; null, which means no score, becomes NaN."""
    return pc.fill_null(pc.cast(column, pa.float64()), float("nan")).to_numpy()


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    return pc.call_function("list_value_length", [column]).to_numpy().astype(float)
