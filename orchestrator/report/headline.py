"""The top of the page: what was compared, the numbers to quote, and what to know before that."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prefsweep.orchestrator.report.facts import details
from prefsweep.orchestrator.report.families import SYMBOLS, Family
from prefsweep.orchestrator.report.formats import counted, show
from prefsweep.orchestrator.report.frontier import (
    Comparison,
    intervals_overlap,
    metric,
)
from prefsweep.orchestrator.report.tables import evaluation_size, status_counts, time_spent
from prefsweep.sweeps.grid import number
from prefsweep.sweeps.records import SweepResults, TrialResult


def headline(
    results: SweepResults, comparison: Comparison, groups: Sequence[Family]
) -> dict[str, Any]:
    """What the template's header needs."""
    tiles = [
        _tile("Reward of the untrained policy", comparison.untrained, comparison),
        _tile("Best reward", comparison.best, comparison),
        _accuracy_tile(comparison),
    ]
    return {
        "sweep": results.sweep,
        "compared": _what_was_compared(results, comparison, groups),
        "tiles": [tile for tile in tiles if tile is not None],
        "within": _within(comparison),
        "pareto": _pareto(comparison, groups),
        "has_start": metric(comparison.untrained, "reward_mean") is not None,
        "caveats": _caveats(comparison),
        "counts": status_counts(comparison),
        "evaluation": evaluation_size(results),
        "time": time_spent(results),
    }


def _what_was_compared(
    results: SweepResults, comparison: Comparison, groups: Sequence[Family]
) -> str:
    labels = [family.label for family in groups]
    betas = sorted({member.trial.beta for f in groups for member in f.members if member.trial})
    losses = ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
    text = f"{counted(len(comparison.trials), 'trial')}: {losses or 'none yet'}"
    if betas:
        text += f"; beta {', '.join(map(number, betas)) if len(betas) <= 8 else _span(betas)}"
    for section, keys in (("policy", ("model",)), ("reward", ("model", "function", "type"))):
        name = _first(results.spec.get(section), keys)
        text += f"; {section} {name}" if name else ""
    return f"{text}."


def _span(values: Sequence[float]) -> str:
    return f"{number(values[0])} to {number(values[-1])}"


def _first(section: object, keys: Sequence[str]) -> str | None:
    """The first of these keys that a section of the spec has."""
    if not isinstance(section, Mapping):
        return None
    return next((str(section[key]) for key in keys if section.get(key)), None)


def _within(comparison: Comparison) -> dict[str, Any] | None:
    """The tile with the slider, as it stands before it is moved: at the median KL."""
    if comparison.budget is None:
        return None
    tile = _tile("Best reward within a KL budget", comparison.best_within, comparison)
    return None if tile is None else tile | {"budget": f"{_rounded_up(comparison.budget):g}"}


def _rounded_up(value: float) -> float:
    """To three significant digits, upwards: the trial at the budget stays within it."""
    if value <= 0:
        return value
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / step) * step:.3g}")


def _pareto(comparison: Comparison, groups: Sequence[Family]) -> list[dict[str, str]]:
    family_of = {member.trial_id: family for family in groups for member in family.members}
    return [
        {
            "id": result.trial_id,
            "name": result.name,
            "colour": family_of[result.trial_id].colour,
            "path": SYMBOLS[family_of[result.trial_id].symbol],
        }
        for result in comparison.pareto
    ]


def _tile(label: str, result: TrialResult | None, comparison: Comparison) -> dict[str, Any] | None:
    """A reward as one large number with what belongs to it; None where there is no reward."""
    reward = metric(result, "reward_mean")
    if result is None or reward is None:
        return None
    return {
        "label": label,
        "id": None if result.trial is None else result.trial_id,
        "name": None if result.trial is None else result.name,
        "value": show(reward),
        "details": details(result, comparison),
    }


def _accuracy_tile(comparison: Comparison) -> dict[str, Any] | None:
    """What there is to compare without a reward: how well a trial tells the test pairs apart."""
    able = [result for result in comparison.finished if metric(result, "accuracy_test") is not None]
    if comparison.best is not None or not able:
        return None
    best = max(able, key=lambda result: metric(result, "accuracy_test") or 0.0)
    return {
        "label": "Best accuracy on the test pairs",
        "id": best.trial_id,
        "name": best.name,
        "value": show(metric(best, "accuracy_test")),
        "details": [f"KL {show(metric(best, 'kl'))} nats"],
    }


def _caveats(comparison: Comparison) -> list[str]:
    """What a reader should know before quoting the numbers above."""
    best, lines = comparison.best, list[str]()
    if comparison.untrained is None:
        lines.append("The untrained policy is not evaluated yet; there is nothing to compare with.")
    if best is None:
        return lines
    if intervals_overlap(best, comparison.untrained):
        lines.append(
            "The 95% intervals of the best trial and of the untrained policy overlap: "
            "these prompts do not show that training helped."
        )
    rivals = [
        result
        for result in comparison.finished
        if result is not best and intervals_overlap(best, result)
    ]
    if rivals:
        lines.append(
            f"The intervals of {counted(len(rivals), 'other trial')} overlap the best one's; "
            "it takes more held-out prompts or seeds to tell them apart."
        )
    if len({result.trial.seed for result in comparison.finished if result.trial}) > 1:
        lines.append("Every seed is a trial of its own; lines run through the means over seeds.")
    return lines
