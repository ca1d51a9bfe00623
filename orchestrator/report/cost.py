"""The cost section: seconds by stage and by trial, GPU-hours, and what the store saved."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefsweep.orchestrator.text import counted, duration
from prefsweep.sweeps.records import StageResult, SweepResults, TrialResult

MAX_BARS = 24
"""Trials whose bars are open at once; more are folded away."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of work of one stage or trial: of the stage or training, and of evaluation."""

    name: str
    seconds: float
    evaluation: float
    found: bool

    @property
    def total(self) -> float:
        return self.seconds + self.evaluation


def cost(results: SweepResults) -> dict[str, Any]:
    """Totals, and bars whose lengths are percentages of the longest of their kind."""
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
    """GPU-hours of the trials: their seconds times their share of a GPU; None without a GPU."""
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
    totals.append(("Saved: found in the store", saved, _what_was_found(stages, trials)))
    return [{"label": label, "value": value, "detail": detail} for label, value, detail in totals]


def _each(trials: list[Spent]) -> str:
    times = [spent.seconds for spent in trials if spent.seconds]
    return f"{duration(sum(times) / len(times))} a trial on average" if times else ""


def _what_was_found(stages: list[Spent], trials: list[Spent]) -> str:
    found = [
        counted(sum(spent.found for spent in each), noun)
        for each, noun in ((stages, "stage"), (trials, "trial"))
        if any(spent.found for spent in each)
    ]
    return f"{' and '.join(found)} made by other sweeps" if found else "all of it was made here"


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
    """GPUs of a trial; auto is a whole one."""
    resources = spec.get("resources")
    share = resources.get("gpus_per_trial") if isinstance(resources, Mapping) else None
    return float(share) if isinstance(share, int | float) else 1.0
