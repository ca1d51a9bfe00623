"""The points of one loss: a trial each with its interval, or small seeds and their large mean.

Only succeeded trials are drawn. A trace's `ids` are the trials of its points.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from prefsweep.orchestrator.report.families import Family, beta_of
from prefsweep.orchestrator.report.plot import Trace, plain, rounded
from prefsweep.orchestrator.results.frontier import interval, metric
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
    """A line along beta through the means over seeds, and a point with its interval per trial."""
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
    """Reward at x with its interval, one point a trial, marked with its beta where labels fit.

    Where trials differ in their seed alone their points are small, and their mean has the label.
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
    del points["error_y"]  # the mean has the interval of all seeds
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
    """Mean x and reward over the trials of one beta, which differ in their seeds."""

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
    """The intervals of trials' mean rewards as bars around their points."""
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
