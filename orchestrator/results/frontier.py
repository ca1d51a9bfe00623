"""Which trials to look at: the best by reward, the best within a KL budget, the Pareto set.

Only finished trials with a finite reward and KL compete. The untrained policy competes for the
Pareto set too, with its reward at KL 0: a trial that it dominates bought nothing.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from prefsweep.sweeps.records import Status, SweepResults, TrialResult


@dataclass(frozen=True, slots=True)
class Point:
    """A policy as the comparison sees it: reward up, KL (nats) down."""

    trial_id: str
    reward: float
    kl: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The trials of a sweep and the ones that stand out; None and [] where nothing can compete."""

    untrained: TrialResult | None
    trials: list[TrialResult]
    """All trials in grid order, without the untrained policy."""
    finished: list[TrialResult]
    """Trials that succeeded."""
    best: TrialResult | None
    budget: float | None
    """Median KL of the competing trials, nats; None for fewer than two."""
    best_within: TrialResult | None
    pareto: list[TrialResult]
    """Trials that neither another trial nor the untrained policy dominates, by KL ascending."""


def compare(results: SweepResults) -> Comparison:
    """Sort a sweep's results into what the report is about."""
    trials = [result for result in results.results if result.trial is not None]
    untrained = next((result for result in results.results if result.trial is None), None)
    finished = [result for result in trials if result.status is Status.SUCCEEDED]
    points = [point for point in map(_point, finished) if point is not None]
    budget = statistics.median(point.kl for point in points) if len(points) > 1 else None
    by_id = {result.trial_id: result for result in finished}

    def named(point: Point | None) -> TrialResult | None:
        return None if point is None else by_id[point.trial_id]

    return Comparison(
        untrained=untrained,
        trials=trials,
        finished=finished,
        best=named(best(points)),
        budget=budget,
        best_within=None if budget is None else named(best_within(points, budget)),
        pareto=[
            by_id[point.trial_id]
            for point in pareto([*untrained_point(untrained), *points])
            if point.trial_id in by_id
        ],
    )


def best(points: Sequence[Point]) -> Point | None:
    """The highest reward; of equal ones that with the lower KL, then the first."""
    return max(points, key=lambda point: (point.reward, -point.kl), default=None)


def best_within(points: Sequence[Point], budget: float) -> Point | None:
    """The highest reward among points with a KL of at most `budget` nats."""
    return best([point for point in points if point.kl <= budget])


def pareto(points: Sequence[Point]) -> list[Point]:
    """Points that no other dominates, by KL ascending.

    One dominates another if its reward is no lower and its KL no higher, and one of the two is
    better; equal points do not dominate each other.
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.kl, -point.reward)):
        last = front[-1] if front else None
        if last is None or point.reward > last.reward or _same_place(point, last):
            front.append(point)
    return front


def metric(result: TrialResult | None, name: str) -> float | None:
    """A finite metric of a result, or None."""
    value = None if result is None else result.metrics.get(name)
    return None if value is None or not math.isfinite(value) else float(value)


def interval(result: TrialResult | None, name: str = "reward") -> tuple[float, float] | None:
    """The 95% interval of the mean reward (or of another metric that has one), or None."""
    low, high = metric(result, f"{name}_ci_low"), metric(result, f"{name}_ci_high")
    return None if low is None or high is None else (low, high)


def intervals_overlap(one: TrialResult | None, other: TrialResult | None) -> bool:
    """Whether both have an interval and the two have a value in common."""
    first, second = interval(one), interval(other)
    if first is None or second is None:
        return False
    return first[0] <= second[1] and second[0] <= first[1]


def _point(result: TrialResult) -> Point | None:
    reward, kl = metric(result, "reward_mean"), metric(result, "kl")
    return None if reward is None or kl is None else Point(result.trial_id, reward, kl)


def untrained_point(untrained: TrialResult | None) -> list[Point]:
    """The untrained policy at KL 0, where it has a reward."""
    reward = metric(untrained, "reward_mean")
    return [] if reward is None else [Point("", reward, 0.0)]


def _same_place(one: Point, other: Point) -> bool:
    return (one.reward, one.kl) == (other.reward, other.kl)
