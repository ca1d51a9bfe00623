"""The top of the page: what was compared, the numbers to quote, and what to know before that."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prefsweep.orchestrator.report.facts import ids_of, untrained_lines, variant_lines
from prefsweep.orchestrator.report.families import SYMBOLS, Family
from prefsweep.orchestrator.report.tables import evaluation_size, status_counts, time_spent
from prefsweep.orchestrator.results.frontier import Comparison, metric
from prefsweep.orchestrator.results.variants import INTERVAL_METHOD, METHOD, Pooled, Variant
from prefsweep.orchestrator.text import counted, show
from prefsweep.sweeps.grid import number
from prefsweep.sweeps.records import SweepResults, TrialResult


def headline(
    results: SweepResults, comparison: Comparison, groups: Sequence[Family], pooled: Pooled
) -> dict[str, Any]:
    """What the template's header needs."""
    tiles = [
        _untrained_tile(comparison.untrained),
        _tile("Best reward", pooled.best),
        _accuracy_tile(comparison, pooled),
    ]
    return {
        "sweep": results.sweep,
        "compared": _what_was_compared(results, comparison, groups),
        "tiles": [tile for tile in tiles if tile is not None],
        "within": _within(pooled),
        "pareto": _pareto(pooled, groups),
        "has_start": metric(comparison.untrained, "reward_mean") is not None,
        "caveats": _caveats(comparison, pooled),
        "method": _method(pooled),
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


def _within(pooled: Pooled) -> dict[str, Any] | None:
    """The tile with the slider, as it stands before it is moved: at the median KL."""
    tile = _tile("Best reward within a KL budget", pooled.best_within)
    if pooled.budget is None or tile is None:
        return None
    return tile | {"budget": f"{_rounded_up(pooled.budget):g}"}


def _rounded_up(value: float) -> float:
    """To three significant digits, upwards: the trial at the budget stays within it."""
    if value <= 0:
        return value
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / step) * step:.3g}")


def _pareto(pooled: Pooled, groups: Sequence[Family]) -> list[dict[str, str]]:
    family_of = {member.trial_id: family for family in groups for member in family.members}
    families = [family_of[variant.members[0].trial_id] for variant in pooled.pareto]
    return [
        {
            "ids": ids_of(variant),
            "name": variant.name,
            "colour": family.colour,
            "path": SYMBOLS[family.symbol],
        }
        for variant, family in zip(pooled.pareto, families, strict=True)
    ]


def _tile(label: str, variant: Variant | None) -> dict[str, Any] | None:
    """A reward as one large number with what belongs to it; None where there is no reward."""
    if variant is None or variant.reward is None:
        return None
    name = {"label": label, "ids": ids_of(variant), "name": variant.name}
    return name | {"value": show(variant.reward), "details": variant_lines(variant)}


def _untrained_tile(untrained: TrialResult | None) -> dict[str, Any] | None:
    reward = metric(untrained, "reward_mean")
    if untrained is None or reward is None:
        return None
    name = {"label": "Reward of the untrained policy", "ids": "", "name": ""}
    return name | {"value": show(reward), "details": untrained_lines(untrained)}


def _accuracy_tile(comparison: Comparison, pooled: Pooled) -> dict[str, Any] | None:
    """What there is to compare without a reward: how well a trial tells the test pairs apart."""
    able = [result for result in comparison.finished if metric(result, "accuracy_test") is not None]
    if pooled.best is not None or not able:
        return None
    best = max(able, key=lambda result: metric(result, "accuracy_test") or 0.0)
    return {
        "label": "Best accuracy on the test pairs",
        "ids": best.trial_id,
        "name": best.name,
        "value": show(metric(best, "accuracy_test")),
        "details": [f"KL {show(metric(best, 'kl'))} nats"],
    }


def _caveats(comparison: Comparison, pooled: Pooled) -> list[str]:
    """What a reader should know before quoting the numbers above."""
    lines: list[str] = []
    if comparison.untrained is None:
        lines.append("The untrained policy is not evaluated yet; there is nothing to compare with.")
    if pooled.best is None or pooled.best.standing is None:
        return lines
    if pooled.untrained is not None and not pooled.untrained.distinguishable:
        lines.append(
            "These prompts do not show that training helped: the untrained policy is not "
            f"distinguishable from the best (p = {pooled.untrained.p_value:.2g})."
        )
    others = sum(variant.reward is not None for variant in pooled.variants) - 1
    if pooled.peers:
        lines.append(
            f"Of {counted(others, 'other')}, {len(pooled.peers)} cannot be told from the best "
            "(\u2248 best in the table); more held-out prompts or seeds would tell them apart."
        )
    elif others:
        lines.append(f"The best is better than all others that have a reward ({others}).")
    if pooled.num_seeds > 1:
        lines.append(
            f"Up to {pooled.num_seeds} seeds a grid point; the numbers above are of all its seeds."
        )
    return lines


def _method(pooled: Pooled) -> str:
    """Where intervals and marks come from, and of how many prompts."""
    if pooled.best is None or pooled.best.reward_interval is None:
        return ""
    seeds = " and seeds" if pooled.num_seeds > 1 else ""
    text = f"95% intervals: {INTERVAL_METHOD}{seeds}, n = {counted(pooled.num_prompts, 'prompt')}"
    return text if pooled.best.standing is None else f"{text}. Told apart by {METHOD}"
