"""Data for four sections of the page: data, failures, cost and provenance."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from prefsweep.orchestrator.report.style import NEUTRAL, Plot, Trace, plot_layout, rounded
from prefsweep.orchestrator.results.analysis import Comparison
from prefsweep.orchestrator.results.compare import leaves
from prefsweep.orchestrator.text import counted, duration, show, without_terminal_codes
from prefsweep.sweeps.records import (
    DROPPED,
    Failure,
    Histogram,
    StageResult,
    Status,
    SweepResults,
    TrialResult,
)
from prefsweep.sweeps.spec import SweepSpec

# --- data -----------------------------------------------------------------------------------------


SERIES = {
    "all": NEUTRAL,
    "chosen": "#2f7ed8",
    "rejected": "#d9690f",
    "pairs": "#2f7ed8",
}
"""Series of a histogram -> colour."""


def data_plots(results: SweepResults) -> list[Plot]:
    """Histograms of the scores, margins and lengths that exist."""
    data = results.data
    drawn = (
        ("data-scores", "Rewards of the completions", "reward", data.scores),
        ("data-margins", "Reward gap of a pair", "chosen - rejected reward", data.margins),
        ("data-lengths", "Length of the completions in pairs", "tokens", data.lengths),
    )
    return [
        Plot(id=key, title=title, caption=_caption(key), figure=_figure(histogram, x_title))
        for key, title, x_title, histogram in drawn
        if histogram is not None
    ]


def stage_rows(results: SweepResults) -> list[dict[str, Any]]:
    """One row per finished stage."""
    return [
        {
            "name": stage.name,
            "rows": f"{stage.rows:,}",
            "notes": [f"{_words(name)}: {count(value)}" for name, value in _other_notes(stage)],
            "duration": duration(stage.seconds),
            "fingerprint": stage.fingerprint,
            "found": stage.found,
        }
        for stage in results.stages
    ]


def dropped(results: SweepResults) -> dict[str, Any]:
    """{"rows": [{"stage", "reason", "count", "share"}] of dropped items, "none": other reasons}."""
    rows: list[dict[str, Any]] = []
    none: list[str] = []
    for stage in results.stages:
        reasons = {n.removeprefix(DROPPED): v for n, v in stage.notes.items() if _is(n)}
        candidates = stage.rows + sum(reasons.values())
        none += [reason for reason, value in reasons.items() if not value]
        rows += [
            {
                "stage": stage.name,
                "reason": reason,
                "count": count(value),
                "share": f"{100 * value / candidates:.1f}% of {count(candidates)}",
            }
            for reason, value in reasons.items()
            if value
        ]
    return {"rows": rows, "none": none}


def count(value: float) -> str:
    """A whole number with thousands separators; other numbers as in `show`."""
    return f"{int(value):,}" if math.isfinite(value) and value == int(value) else show(value)


def _is(name: str) -> bool:
    return name.startswith(DROPPED)


def _other_notes(stage: StageResult) -> list[tuple[str, float]]:
    """Notes other than dropped counts and the time, which the page shows elsewhere."""
    return [
        (name, value) for name, value in stage.notes.items() if not _is(name) and name != "seconds"
    ]


def _words(name: str) -> str:
    return name.removeprefix("num_").replace("_", " ")


def _caption(key: str) -> str:
    return {
        "data-scores": "A completion counts once for each pair that it is chosen or rejected in.",
        "data-margins": "A pair with a small gap says little about which completion is better.",
        "data-lengths": "Where chosen completions are longer, training may learn length.",
    }[key]


def _figure(histogram: Histogram, x_title: str) -> dict[str, Any]:
    layout = plot_layout(x_title, y_title="count", height=260)
    several = len(histogram.counts) > 1
    layout |= {"barmode": "overlay", "bargap": 0, "showlegend": several}
    layout["legend"] = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemwidth": 30}
    layout["margin"]["t"] = 32 if several else 12
    layout["yaxis"]["rangemode"] = "tozero"
    return {
        "data": [
            _histogram_bars(histogram.edges, name, counts)
            for name, counts in histogram.counts.items()
        ],
        "layout": layout,
    }


def _histogram_bars(edges: Sequence[float], name: str, counts: Sequence[int]) -> Trace:
    width = edges[1] - edges[0]
    return {
        "type": "bar",
        "name": name,
        "x": rounded([(low + high) / 2 for low, high in itertools.pairwise(edges)]),
        "y": list(counts),
        "width": width,
        "marker": {"color": SERIES.get(name, NEUTRAL), "line": {"width": 0}},
        "opacity": 0.35 if name == "all" else 0.6,
        "hovertemplate": f"{name}: %{{y}} at %{{x:.4g}}<extra></extra>",
    }


# --- failures -------------------------------------------------------------------------------------


UNFINISHED = (Status.RUNNING, Status.PENDING, Status.INTERRUPTED)


def failures(results: SweepResults) -> list[dict[str, Any]]:
    """Failures with their trials; equal failures of several trials are grouped."""
    groups: dict[tuple[str, str, str], dict[str, Any]] = {}
    for result in results.results:
        if result.failure is None and result.status is not Status.FAILED:
            continue
        failure = result.failure or Failure("transient", "No reason was recorded.")
        group = groups.setdefault(
            (failure.kind, failure.message, failure.advice),
            {
                "trials": [],
                "kind": failure.kind.replace("_", " "),
                "message": without_terminal_codes(failure.message),
                "advice": failure.advice,
                "traceback": without_terminal_codes(failure.traceback),
                "logs": [],
            },
        )
        group["trials"].append({"id": result.trial_id, "name": result.name})
        if failure.log_path:
            group["logs"].append(failure.log_path)
    return list(groups.values())


def unfinished(comparison: Comparison) -> list[dict[str, Any]]:
    """[{"status", "names"}] of the unfinished trials."""
    groups = {
        status: [result.name for result in comparison.trials if result.status is status]
        for status in UNFINISHED
    }
    return [{"status": status.value, "names": names} for status, names in groups.items() if names]


# --- cost -----------------------------------------------------------------------------------------


MAX_BARS = 24
"""With more trials, their bars are folded."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of one stage or trial: the stage or training, and evaluation."""

    name: str
    seconds: float
    evaluation: float
    found: bool

    @property
    def total(self) -> float:
        return self.seconds + self.evaluation


def cost(results: SweepResults) -> dict[str, Any]:
    """Totals, and bars with lengths in percent of the longest bar of their group."""
    stages = [_stage(stage) for stage in results.stages]
    stages += [
        Spent(result.name, result.evaluate_seconds or 0.0, 0.0, result.found)
        for result in results.results
        if result.trial is None
    ]
    trials = [_trial(result) for result in results.results if result.trial is not None]
    trials = [spent for spent in trials if spent.total > 0]
    return {
        "totals": _totals(results, stages, trials),
        "groups": [
            {"title": title, "bars": _bars(spent), "fold": len(spent) > MAX_BARS}
            for title, spent in (("Stages", stages), ("Trials", trials))
            if spent
        ],
        "num_trials": len(trials),
        "evaluated": any(spent.evaluation for spent in trials),
    }


def gpu_hours(results: SweepResults) -> float | None:
    """GPU-hours of the trials: seconds times share of a GPU; None without a GPU."""
    on_gpu = [result for result in results.results if result.metrics.get("gpu_memory_gib")]
    if not on_gpu:
        return None
    return sum(_trial(result).total for result in on_gpu) * _share(results.spec) / 3600


def _totals(
    results: SweepResults, stages: list[Spent], trials: list[Spent]
) -> list[dict[str, str]]:
    everything = [*stages, *trials]
    totals = [
        ("Stages", duration(sum(spent.total for spent in stages)), ""),
        ("Training", duration(sum(spent.seconds for spent in trials)), _each(trials)),
        ("Evaluation of trials", duration(sum(spent.evaluation for spent in trials)), ""),
    ]
    hours = gpu_hours(results)
    if hours is not None:
        share = f"of {_share(results.spec):g} GPU a trial"
        totals.append(("GPU-hours of the trials", f"{hours:.2f}", share))
    found = [spent for spent in everything if spent.found]
    saved = duration(sum(spent.total for spent in found)) if found else "nothing"
    totals.append(("Saved by reuse", saved, _reused(stages, trials)))
    return [{"label": label, "value": value, "detail": detail} for label, value, detail in totals]


def _each(trials: list[Spent]) -> str:
    times = [spent.seconds for spent in trials if spent.seconds]
    return f"{duration(sum(times) / len(times))} a trial on average" if times else ""


def _reused(stages: list[Spent], trials: list[Spent]) -> str:
    found = [
        counted(sum(spent.found for spent in each), noun)
        for each, noun in ((stages, "stage"), (trials, "trial"))
        if any(spent.found for spent in each)
    ]
    return (
        f"{' and '.join(found)} reused from other sweeps"
        if found
        else "everything was computed for this sweep"
    )


def _stage(stage: StageResult) -> Spent:
    return Spent(stage.name, stage.seconds, 0.0, stage.found)


def _trial(result: TrialResult) -> Spent:
    trained, evaluated = result.train_seconds or 0.0, result.evaluate_seconds or 0.0
    return Spent(result.name, trained, evaluated, result.found)


def _bars(spent: list[Spent]) -> list[dict[str, Any]]:
    longest = max((each.total for each in spent), default=0.0) or 1.0
    return [
        {
            "name": each.name,
            "found": each.found,
            "duration": duration(each.total),
            "width": round(100 * each.seconds / longest, 1),
            "evaluation": round(100 * each.evaluation / longest, 1),
        }
        for each in spent
    ]


def _share(spec: Mapping[str, object]) -> float:
    """GPUs per trial; 1 for auto."""
    resources = spec.get("resources")
    share = resources.get("gpus_per_trial") if isinstance(resources, Mapping) else None
    return float(share) if isinstance(share, int | float) else 1.0


# --- provenance -----------------------------------------------------------------------------------


def provenance(results: SweepResults) -> dict[str, Any]:
    """Spec, changed defaults, seeds, versions and fingerprints."""
    return {
        "commands": results.commands,
        "spec": json.dumps(results.spec, indent=2, ensure_ascii=False, default=str),
        "changed": [
            {"field": field, "value": json.dumps(value, ensure_ascii=False, default=str)}
            for field, value in leaves(_without_defaults(results.spec))
        ],
        "seeds": [
            {"field": field, "value": json.dumps(value)}
            for field, value in leaves(results.spec)
            if field.rpartition(".")[2] in ("seed", "seeds")
        ],
        "environment": results.environment,
        "fingerprints": [
            *((stage.name, stage.fingerprint) for stage in results.stages),
            *((r.name, r.trial_id) for r in results.results if r.trial is not None),
        ],
    }


def _without_defaults(spec: Mapping[str, object]) -> dict[str, object]:
    """The fields of a spec that differ from their defaults; all fields if it is incomplete."""
    try:
        whole = SweepSpec.model_validate(spec)
    except ValidationError:
        return dict(spec)
    return whole.model_dump(mode="json", exclude_defaults=True)
