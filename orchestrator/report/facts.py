"""What report.js knows of every policy: its name, its look, and its numbers as text.

Plots, table, slider, chosen trials and sample completions share it, by trial id.
"""

from collections.abc import Sequence
from typing import Any

from prefsweep.orchestrator.report.families import NEUTRAL, SYMBOLS, Family
from prefsweep.orchestrator.report.figures import rounded
from prefsweep.orchestrator.report.formats import show
from prefsweep.orchestrator.report.frontier import Comparison, interval, metric
from prefsweep.sweeps.records import Status, TrialResult

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
    return [_facts(result, family_of.get(result.trial_id), comparison) for result in results]


def _facts(result: TrialResult, family: Family | None, comparison: Comparison) -> dict[str, Any]:
    reward, kl = metric(result, "reward_mean"), metric(result, "kl")
    facts: dict[str, Any] = {
        "id": result.trial_id,
        "name": result.name,
        "colour": NEUTRAL if family is None else family.colour,
        "path": UNTRAINED_PATH if family is None else SYMBOLS[family.symbol],
    }
    if result.trial is None:
        facts |= {"untrained": True}
        kl = 0.0
    competes = result.status is Status.SUCCEEDED and reward is not None and kl is not None
    if competes and reward is not None and kl is not None:
        facts |= {
            "reward": rounded([reward])[0],
            "kl": rounded([kl])[0],
            "shown": show(reward),
            "details": details(result, comparison),
        }
    return facts | {"hover": _hover(result)}


def details(result: TrialResult, comparison: Comparison) -> list[str]:
    """What belongs to a reward that is quoted: interval, KL, and the gain over the start."""
    reward, bounds = metric(result, "reward_mean"), interval(result)
    lines = [f"95% interval {show(bounds[0])} to {show(bounds[1])}"] if bounds else []
    start = metric(comparison.untrained, "reward_mean")
    if result.trial is not None and reward is not None:
        lines.append(f"KL {show(metric(result, 'kl'))} nats")
        if start is not None:
            sign = "+" if reward >= start else ""
            lines.append(f"{sign}{show(reward - start)} over untrained")
    return lines


def _hover(result: TrialResult) -> list[str]:
    """The lines of the box beside a point, after the name."""
    bounds = interval(result)
    around = f" [{show(bounds[0])}, {show(bounds[1])}]" if bounds else ""
    return [
        f"reward {show(metric(result, 'reward_mean'))}{around}",
        *(f"{label} {show(metric(result, name))}{unit}" for name, (label, unit) in _HOVER.items()),
    ]
