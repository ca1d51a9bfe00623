"""Points of one loss with their intervals, and box plots of sample rewards.

Only succeeded trials are drawn. Box plots get quartiles, whiskers and outliers instead of samples,
so that the size of the page does not grow with the number of samples.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from prefsweep.orchestrator.report.style import (
    NEUTRAL,
    Family,
    Plot,
    Trace,
    beta_of,
    plain,
    plot_layout,
    rounded,
    thinned,
)
from prefsweep.orchestrator.results.analysis import Comparison, interval, metric
from prefsweep.sweeps.grid import number
from prefsweep.sweeps.records import Status, TrialResult


def with_metrics(family: Family, *names: str) -> list[TrialResult]:
    """The family's succeeded trials that have all of these metrics."""
    return [
        member
        for member in family.members
        if member.status is Status.SUCCEEDED
        and all(metric(member, name) is not None for name in names)
    ]


def family_traces(
    family: Family, members: Sequence[TrialResult], x: Sequence[float], *, label: bool
) -> list[Trace]:
    """A line through the means over seeds by beta, and one point with interval per trial."""
    if not members:
        return []
    means = _means_by_beta(members, x)
    line = {
        "type": "scatter",
        "mode": "lines",
        "meta": family.key,
        "name": plain(family.label),
        "x": rounded([mean.x for mean in means]),
        "y": rounded([mean.reward for mean in means]),
        "line": {"color": family.colour, "width": 1.5},
        "opacity": 0.6,
        "hoverinfo": "skip",
    }
    return [line, *family_points(family, members, x, label=label)]


def family_points(
    family: Family, members: Sequence[TrialResult], x: Sequence[float], *, label: bool
) -> list[Trace]:
    """Rewards at x with intervals, one point per trial, labelled with its beta if `label`.

    With several seeds per beta, their points are small and their mean is a large labelled point.
    """
    means = _means_by_beta(members, x)
    replicated = len(means) < len(members)
    rewards = [metric(member, "reward_mean") or 0.0 for member in members]
    points = _markers(family) | {
        "x": rounded(x),
        "y": rounded(rewards),
        "error_y": error_bars(members, rewards, family.colour),
        "ids": [member.trial_id for member in members],
    }
    if not replicated:
        return [points | _labels(family, means) if label else points]
    points["marker"] |= {"size": 6, "opacity": 0.65}
    del points["error_y"]  # the mean has the interval over all seeds
    pooled = _markers(family) | {
        "x": rounded([mean.x for mean in means]),
        "y": rounded([mean.reward for mean in means]),
        "ids": [" ".join(mean.trial_ids) for mean in means],
    }
    pooled["marker"] |= {"size": 12}
    return [points, pooled | _labels(family, means) if label else pooled]


def _markers(family: Family) -> Trace:
    return {
        "type": "scatter",
        "meta": family.key,
        "name": plain(family.label),
        "mode": "markers",
        "marker": {"color": family.colour, "symbol": family.symbol, "size": 10},
        "cliponaxis": False,
    }


def _labels(family: Family, means: Sequence["Mean"]) -> Trace:
    return {
        "mode": "markers+text",
        "text": [number(mean.beta) for mean in means],
        "textfont": {"color": family.colour, "size": 12},
    }


@dataclass(frozen=True, slots=True)
class Mean:
    """Means of x and reward over the seeds of one beta."""

    beta: float
    x: float
    reward: float
    trial_ids: tuple[str, ...]


def _means_by_beta(members: Sequence[TrialResult], x: Sequence[float]) -> list[Mean]:
    """One mean per beta, by beta ascending."""
    groups: dict[float, list[tuple[float, TrialResult]]] = {}
    for member, at in zip(members, x, strict=True):
        groups.setdefault(beta_of(member), []).append((at, member))
    return [
        Mean(
            beta=beta,
            x=statistics.fmean(at for at, _ in group),
            reward=statistics.fmean(metric(m, "reward_mean") or 0.0 for _, m in group),
            trial_ids=tuple(member.trial_id for _, member in group),
        )
        for beta, group in sorted(groups.items())
    ]


def error_bars(members: Sequence[TrialResult], rewards: Sequence[float], colour: str) -> Trace:
    """The 95% intervals of mean rewards as error bars."""
    return interval_bars([interval(member) for member in members], rewards, colour)


def interval_bars(
    bounds: Sequence[tuple[float, float] | None], rewards: Sequence[float], colour: str
) -> Trace:
    ends = [around or (reward, reward) for around, reward in zip(bounds, rewards, strict=True)]
    up = [high - reward for (_, high), reward in zip(ends, rewards, strict=True)]
    down = [reward - low for (low, _), reward in zip(ends, rewards, strict=True)]
    return {
        "type": "data",
        "symmetric": False,
        "array": rounded(up),
        "arrayminus": rounded(down),
        "color": colour,
        "thickness": 1.2,
        "width": 3,
    }


# --- boxes ----------------------------------------------------------------------------------------


MAX_BOXES = 16
"""Maximum betas of a panel; more are thinned evenly."""
MAX_OUTLIERS = 30
"""Maximum outliers drawn per box; more are thinned evenly."""


@dataclass(frozen=True, slots=True)
class Box:
    """A Tukey box plot of a distribution: five numbers and the outliers."""

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
    """One panel per family that has sample rewards; all share one reward axis."""
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
    """The box of some values, with linearly interpolated quartiles; None without values."""
    if not values:
        return None
    q1, median, q3 = (float(q) for q in np.percentile(values, (25, 50, 75)))
    reach = 1.5 * (q3 - q1)
    inside = [value for value in values if q1 - reach <= value <= q3 + reach]
    outside = sorted(value for value in values if not q1 - reach <= value <= q3 + reach)
    return Box(min(inside), q1, median, q3, max(inside), tuple(thinned(outside, MAX_OUTLIERS)))


def _boxes_by_beta(family: Family) -> dict[float, Box]:
    """beta -> the box of the samples of all its seeds."""
    members: dict[float, list[TrialResult]] = {}
    for member in family.members:
        if member.status is Status.SUCCEEDED:
            members.setdefault(beta_of(member), []).append(member)
    betas = thinned(sorted(members), MAX_BOXES)
    boxes = {beta: box(_rewards(members[beta])) for beta in betas}
    return {beta: each for beta, each in boxes.items() if each is not None}


def _rewards(results: Iterable[TrialResult]) -> list[float]:
    return [
        sample.reward
        for result in results
        for sample in result.samples
        if sample.reward is not None and math.isfinite(sample.reward)
    ]


def _limits(boxes: Sequence[Box]) -> list[float]:
    """The range of the reward axis, with a margin."""
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
    """The mean reward of every trial that has a box."""
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
        # Plotly needs a point per box; the median is one that is not drawn.
        "y": [rounded([each.median, *each.outliers]) for each in drawn],
        "boxpoints": "outliers",
        "width": 0.6,
        "line": {"color": colour, "width": 1.5},
        "fillcolor": f"{colour}38",
        "marker": {"color": colour, "size": 4, "opacity": 0.7},
        "hoverinfo": "y",
    }
