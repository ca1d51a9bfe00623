"""What report.js knows of every policy: its name, its look, and its numbers as text.

Plots, table, slider, chosen trials and sample completions share it, by trial id.
"""

from collections.abc import Sequence
from typing import Any

from prefsweep.orchestrator.report.families import NEUTRAL, SYMBOLS, Family
from prefsweep.orchestrator.report.plot import rounded
from prefsweep.orchestrator.results.frontier import Comparison, interval, metric
from prefsweep.orchestrator.results.variants import Pooled, Variant
from prefsweep.orchestrator.text import show
from prefsweep.sweeps.records import TrialResult
from prefsweep.workers.statistics import Interval

UNTRAINED_PATH = "M0,-6.5L1.6,-2L6.2,-2L2.5,0.8L3.9,5.3L0,2.6L-3.9,5.3L-2.5,0.8L-6.2,-2L-1.6,-2z"
"""The star of the untrained policy, as an SVG path around (0, 0)."""
_HOVER = {
    "kl": ("KL", " nats"),
    "entropy": ("entropy", " nats"),
    "win_rate": ("win rate", ""),
}
"""Metric -> what a point's box calls it, and its unit."""


def policy_facts(comparison: Comparison, groups: Sequence[Family]) -> list[dict[str, Any]]:
    """The untrained policy, then all trials in grid order."""
    family_of = {member.trial_id: family for family in groups for member in family.members}
    results = [*([comparison.untrained] if comparison.untrained else []), *comparison.trials]
    return [_policy(result, family_of.get(result.trial_id)) for result in results]


def competing_facts(comparison: Comparison, pooled: Pooled) -> list[dict[str, Any]]:
    """What the slider chooses from: the untrained policy at KL 0, and all grid points."""
    facts: list[dict[str, Any]] = []
    start = metric(comparison.untrained, "reward_mean")
    if comparison.untrained is not None and start is not None:
        name, lines = comparison.untrained.name, untrained_lines(comparison.untrained)
        facts.append({"ids": "", "name": name, "kl": 0.0} | _reward(start, lines))
    for variant in pooled.variants:
        kl = variant.mean("kl")
        if variant.reward is not None and kl is not None:
            point = {"ids": ids_of(variant), "name": variant.name, "kl": rounded([kl])[0]}
            facts.append(point | _reward(variant.reward, variant_lines(variant)))
    return facts


def ids_of(variant: Variant) -> str:
    """The trials of a grid point that have finished, as the page's scripts take them."""
    return " ".join(result.trial_id for result in variant.finished)


def untrained_lines(untrained: TrialResult) -> list[str]:
    """What belongs to the untrained policy's reward."""
    return _interval_lines(interval(untrained), num_seeds=1)


def variant_lines(variant: Variant) -> list[str]:
    """What belongs to a reward that is quoted: interval, KL, gain and win rate."""
    lines = _interval_lines(variant.reward_interval, variant.num_seeds)
    lines.append(f"KL {show(variant.mean('kl'))} nats")
    if variant.gain is not None:
        sign, bounds = "+" if variant.gain >= 0 else "", variant.gain_interval
        around = f" [{show(bounds[0])}, {show(bounds[1])}]" if bounds else ""
        lines.append(f"{sign}{show(variant.gain)}{around} over untrained")
    wins = variant.mean("win_rate")
    return lines if wins is None else [*lines, f"wins {100 * wins:.0f}% of the prompts"]


def _interval_lines(bounds: Interval | None, num_seeds: int) -> list[str]:
    over = f", {num_seeds} seeds" if num_seeds > 1 else ""
    return [f"95% interval {show(bounds[0])} to {show(bounds[1])}{over}"] if bounds else []


def _reward(reward: float, lines: list[str]) -> dict[str, Any]:
    return {"reward": rounded([reward])[0], "shown": show(reward), "details": lines}


def _policy(result: TrialResult, family: Family | None) -> dict[str, Any]:
    reward, kl = metric(result, "reward_mean"), metric(result, "kl")
    facts: dict[str, Any] = {
        "id": result.trial_id,
        "name": result.name,
        "colour": NEUTRAL if family is None else family.colour,
        "path": UNTRAINED_PATH if family is None else SYMBOLS[family.symbol],
        "hover": _hover(result),
    }
    if result.trial is None:
        facts["untrained"] = True
    if reward is not None and kl is not None:
        facts |= {"reward": rounded([reward])[0], "kl": rounded([kl])[0]}
    return facts


def _hover(result: TrialResult) -> list[str]:
    """The lines of the box beside a point, after the name."""
    bounds = interval(result)
    around = f" [{show(bounds[0])}, {show(bounds[1])}]" if bounds else ""
    return [
        f"reward {show(metric(result, 'reward_mean'))}{around}",
        *(f"{label} {show(metric(result, name))}{unit}" for name, (label, unit) in _HOVER.items()),
    ]
