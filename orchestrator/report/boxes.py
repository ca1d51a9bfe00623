"""Box plots of the reward of every held-out sample by beta: one panel a loss, untrained beside.

The page gets quartiles, whiskers and outliers, not the samples: its size does not grow with them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from prefsweep.orchestrator.report.families import NEUTRAL, Family, beta_of
from prefsweep.orchestrator.report.plot import Plot, Trace, plain, plot_layout, rounded
from prefsweep.orchestrator.report.points import with_metrics
from prefsweep.orchestrator.results.frontier import Comparison, metric
from prefsweep.sweeps.grid import number
from prefsweep.sweeps.records import Status, TrialResult

MAX_BOXES = 16
"""Betas of a panel; of more, they are thinned evenly."""
MAX_OUTLIERS = 30
"""Points outside a box's whiskers that are drawn; of more, they are thinned evenly."""


@dataclass(frozen=True, slots=True)
class Box:
    """Five numbers of a distribution (Tukey's box plot) and what lies outside them."""

    low: float
    """The lowest value at most 1.5 interquartile ranges below the box."""
    q1: float
    median: float
    q3: float
    high: float
    outliers: tuple[float, ...]


def are_thinned(families: Sequence[Family]) -> bool:
    """Whether a panel has more betas than boxes."""
    return any(len({beta_of(m) for m in family.members}) > MAX_BOXES for family in families)


def box_plots(comparison: Comparison, families: Sequence[Family]) -> list[tuple[Family, Plot]]:
    """The families that have samples with rewards, each with its panel, all on one reward axis."""
    start = box(_rewards([comparison.untrained] if comparison.untrained else []))
    boxes = {family.key: _boxes_by_beta(family) for family in families}
    drawn = [each for row in boxes.values() for each in row.values()]
    if not drawn:
        return []
    limits = _limits([*drawn, start] if start else drawn)
    return [
        (family, _panel(family, start, boxes[family.key], limits))
        for family in families
        if boxes[family.key]
    ]


def box(values: Sequence[float]) -> Box | None:
    """The box of some values, quartiles interpolated linearly; None for no value."""
    if not values:
        return None
    q1, median, q3 = (float(q) for q in np.percentile(values, (25, 50, 75)))
    reach = 1.5 * (q3 - q1)
    inside = [value for value in values if q1 - reach <= value <= q3 + reach]
    outside = sorted(value for value in values if not q1 - reach <= value <= q3 + reach)
    return Box(min(inside), q1, median, q3, max(inside), tuple(_thinned(outside, MAX_OUTLIERS)))


def _boxes_by_beta(family: Family) -> dict[float, Box]:
    """beta -> the box of its samples, of all seeds together."""
    members: dict[float, list[TrialResult]] = {}
    for member in family.members:
        if member.status is Status.SUCCEEDED:
            members.setdefault(beta_of(member), []).append(member)
    betas = _thinned(sorted(members), MAX_BOXES)
    boxes = {beta: box(_rewards(members[beta])) for beta in betas}
    return {beta: each for beta, each in boxes.items() if each is not None}


def _rewards(results: Iterable[TrialResult]) -> list[float]:
    return [
        sample.reward
        for result in results
        for sample in result.samples
        if sample.reward is not None and math.isfinite(sample.reward)
    ]


def _thinned(values: list[float], most: int) -> list[float]:
    """At most `most` of sorted values, the first and the last among them."""
    if len(values) <= most:
        return values
    last = len(values) - 1
    return [values[i * last // (most - 1)] for i in range(most)]


def _limits(boxes: Sequence[Box]) -> list[float]:
    """The ends of the reward axis, with a little room."""
    low = min(min((each.low, *each.outliers)) for each in boxes)
    high = max(max((each.high, *each.outliers)) for each in boxes)
    room = 0.05 * (high - low) or 0.5
    return [low - room, high + room]


def _panel(
    family: Family, start: Box | None, boxes: dict[float, Box], limits: Sequence[float]
) -> Plot:
    data = [_trace("untrained", NEUTRAL, {"untrained": start})] if start else []
    data.append(_trace(family.label, family.colour, {number(b): box for b, box in boxes.items()}))
    data.append(_means(family, boxes))
    layout = plot_layout("", y_title="", height=230)
    layout["margin"] = {"l": 36, "r": 8, "t": 8, "b": 28}
    layout["xaxis"] |= {"type": "category", "showgrid": False, "tickfont": {"size": 11}}
    layout["yaxis"]["range"] = rounded(limits)
    return Plot(
        id=f"reward-box-{family.key}",
        title=family.label,
        caption="",
        figure={"data": data, "layout": layout},
    )


def _means(family: Family, betas: Iterable[float]) -> Trace:
    """The mean reward of every trial with a box, which may lie far from the median."""
    members = [m for m in with_metrics(family, "reward_mean") if beta_of(m) in set(betas)]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "mean",
        "x": [number(beta_of(member)) for member in members],
        "y": rounded([metric(member, "reward_mean") or 0.0 for member in members]),
        "marker": {
            "color": "rgba(0,0,0,0)",
            "symbol": "diamond",
            "size": 8,
            "line": {"color": family.colour, "width": 1.5},
        },
        "ids": [member.trial_id for member in members],
    }


def _trace(name: str, colour: str, boxes: dict[str, Box]) -> Trace:
    drawn = list(boxes.values())
    return {
        "type": "box",
        "name": plain(name),
        "x": list(boxes),
        "lowerfence": rounded([each.low for each in drawn]),
        "q1": rounded([each.q1 for each in drawn]),
        "median": rounded([each.median for each in drawn]),
        "q3": rounded([each.q3 for each in drawn]),
        "upperfence": rounded([each.high for each in drawn]),
        # The median is no outlier and is not drawn: Plotly wants a point of every box.
        "y": [rounded([each.median, *each.outliers]) for each in drawn],
        "boxpoints": "outliers",
        "width": 0.6,
        "line": {"color": colour, "width": 1.5},
        "fillcolor": f"{colour}38",
        "marker": {"color": colour, "size": 4, "opacity": 0.7},
        "hoverinfo": "y",
    }
