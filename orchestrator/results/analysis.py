"""Compares the policies of a sweep: pools seeds, finds the best grid point and the Pareto set.

Only grid points with a finite reward and KL compete. The untrained policy competes with its reward
at KL 0, for the Pareto set and as the best. Whether a policy differs significantly from the best is
tested for all of them at once (workers/comparisons.py). With one seed per grid point the statements
are about these weights, over prompts; with several about the settings, over prompts and seeds.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from prefsweep.orchestrator.results.by_prompt import ByPrompt, by_prompt
from prefsweep.sweeps.grid import TrialSpec, trial_names
from prefsweep.sweeps.records import Status, SweepResults, TrialResult
from prefsweep.workers.comparisons import METHOD, Standing, standings
from prefsweep.workers.resampled import Resamples, best_share, expected_fall, on_frontier, resample
from prefsweep.workers.simultaneous import gain_intervals, share_intervals
from prefsweep.workers.statistics import (
    INTERVAL_METHOD,
    Interval,
    Kind,
    pooled_interval,
    seed_spreads,
)


@dataclass(frozen=True, slots=True)
class Point:
    """Reward and KL (nats) of a policy."""

    trial_id: str
    reward: float
    kl: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The results of a sweep, by kind."""

    untrained: TrialResult | None
    trials: list[TrialResult]
    """All trials in grid order, without the untrained policy."""
    finished: list[TrialResult]
    """Trials that succeeded."""
    confirm_best: bool = False
    """Whether half of the prompts choose the best grid point and the others confirm it."""


def compare(results: SweepResults) -> Comparison:
    """Separate the untrained policy, the trials and the trials that succeeded."""
    trials = [result for result in results.results if result.trial is not None]
    untrained = next((result for result in results.results if result.trial is None), None)
    finished = [result for result in trials if result.status is Status.SUCCEEDED]
    confirm_best = bool(section(results.spec, "evaluation").get("confirm_best"))
    return Comparison(untrained, trials, finished, confirm_best)


def section(spec: Mapping[str, object], name: str) -> Mapping[str, Any]:
    """A section of a stored spec; empty if it has none."""
    fields = spec.get(name)
    return cast("Mapping[str, Any]", fields) if isinstance(fields, Mapping) else {}


def best(points: Sequence[Point]) -> Point | None:
    """The point with the highest reward; among equal ones, the lowest KL, then the first."""
    return max(points, key=lambda point: (point.reward, -point.kl), default=None)


def best_within(points: Sequence[Point], budget: float) -> Point | None:
    """The highest reward among points with a KL of at most `budget` nats."""
    return best([point for point in points if point.kl <= budget])


def pareto(points: Sequence[Point]) -> list[Point]:
    """Points that no other dominates, by KL ascending.

    A point dominates another if its reward is at least as high, its KL at least as low, and one of
    the two is strictly better. Equal points do not dominate each other.
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


def untrained_point(untrained: TrialResult | None) -> list[Point]:
    """The untrained policy at KL 0, where it has a reward."""
    reward = metric(untrained, "reward_mean")
    return [] if reward is None else [Point("", reward, 0.0)]


def _same_place(one: Point, other: Point) -> bool:
    return (one.reward, one.kl) == (other.reward, other.kl)


# --- seeds pooled ---------------------------------------------------------------------------------


__all__ = ["INTERVAL_METHOD", "METHOD", "Pooled", "Variant", "pool"]


@dataclass(frozen=True, slots=True)
class Variant:
    """A grid point, which is all trials that differ only in their seed, with its pooled numbers.

    With one seed the numbers are the trial's own; with several, the interval covers the variation
    over prompts and seeds. None means that there is no finished seed with that number.
    """

    name: str
    members: tuple[TrialResult, ...]
    """Its trials in grid order, finished or not."""
    finished: tuple[TrialResult, ...]
    """The members that succeeded."""
    reward: float | None = None
    reward_interval: Interval | None = None
    kl_interval: Interval | None = None
    gain: float | None = None
    """Reward minus the untrained policy's, paired by prompt."""
    gain_interval: Interval | None = None
    """Simultaneous for all grid points, as that of the win rate."""
    win_interval: Interval | None = None
    standing: Standing | None = None
    """The test against the best policy."""
    frontier: float | None = None
    """Probability of being on the reward-KL frontier."""

    @property
    def num_seeds(self) -> int:
        """Number of finished seeds."""
        return len(self.finished)

    @property
    def indistinguishable(self) -> bool:
        """Whether it is not significantly different from the best; true for the best itself."""
        return self.standing is not None and not self.standing.distinguishable

    def mean(self, name: str) -> float | None:
        """Mean of a metric over the finished seeds that have it."""
        values = [metric(result, name) for result in self.finished]
        there = [value for value in values if value is not None]
        return float(np.mean(there)) if there else None


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The best grid point on the prompts that had no part in choosing it."""

    reward: float
    reward_interval: Interval | None
    gain: float | None
    gain_interval: Interval | None
    num_prompts: int


@dataclass(frozen=True, slots=True)
class Pooled:
    """All variants of a sweep, in grid order."""

    variants: list[Variant]
    best: Variant | None
    """The variant with the highest reward."""
    untrained_is_best: bool
    """Whether the untrained policy has a higher reward than the best variant."""
    budget: float | None
    """Median KL of the variants with a reward, nats; None for fewer than two."""
    best_within: Variant | None
    """The variant with the highest reward at a KL of at most `budget`."""
    pareto: list[Variant]
    """Variants that no other variant and not the untrained policy dominates, by KL ascending."""
    untrained: Standing | None
    """The test of the untrained policy against the best one."""
    num_prompts: int
    """Held-out prompts with a reward from every policy."""
    num_seeds: int
    """Largest number of seeds of a variant, finished or not."""
    fall: float | None = None
    """How much lower the reward of the best variant is expected to be on new prompts."""
    resamples: Resamples | None = None
    """Resampled rewards and KLs of the variants with samples, in grid order."""
    confirmed: Confirmed | None = None
    """The final figure of the best, where half of the prompts were held out for it."""
    num_telling: int | None = None
    """Fewest prompts of a variant that differ from its most common reward; all for 0/1 rewards."""

    @property
    def peers(self) -> list[Variant]:
        """The other variants that are not significantly different from the best policy."""
        return [v for v in self.variants if v.indistinguishable and v is not self.best]

    @property
    def versus_untrained(self) -> Standing | None:
        """The test between the untrained policy and the best variant, two-sided."""
        if self.untrained is None or self.best is None or not self.untrained_is_best:
            return self.untrained
        return self.best.standing

    @property
    def by_trial(self) -> dict[str, Variant]:
        """trial_id -> its variant."""
        return {member.trial_id: v for v in self.variants for member in v.members}

    def share_within(self, variant: Variant | None, budget: float) -> float | None:
        """How often `variant` has the highest reward of those with a KL of at most `budget`.

        A share of the resamples; which variants are within the budget is taken as measured.
        """
        sampled = [v for v in self.variants if v.frontier is not None]
        if self.resamples is None or not any(variant is v for v in sampled):
            return None
        chosen = next(index for index, v in enumerate(sampled) if v is variant)
        within = np.array([(v.mean("kl") or 0.0) <= budget for v in sampled])
        return best_share(self.resamples, chosen, within)


def pool(comparison: Comparison) -> Pooled:
    """Pool a sweep's trials over their seeds and compare all with the best."""
    variants, num_seeds = _variants(comparison)
    data = by_prompt({v.name: v.finished for v in variants}, comparison.untrained)
    variants = _with_intervals(variants, data)
    points, untrained = [p for p in map(_point, variants) if p is not None], None
    highest, resamples, fall, confirmed = best(points), None, None, None
    if comparison.confirm_best and len(data.prompts) > 1:
        chosen, confirmed = confirm(data)
        highest = next((p for p in points if p.trial_id == chosen), highest)
    start = metric(comparison.untrained, "reward_mean")
    untrained_is_best = highest is not None and start is not None and start > highest.reward
    if highest is not None and highest.trial_id in data.rewards:
        place = "" if untrained_is_best and data.start is not None else highest.trial_id
        variants, untrained = _with_standings(variants, data, place)
        variants, resamples, fall = _with_frontier(variants, data)
    by_name = {variant.name: variant for variant in variants}
    budget = statistics.median(point.kl for point in points) if len(points) > 1 else None
    within = None if budget is None else best_within(points, budget)
    front = pareto([*untrained_point(comparison.untrained), *points])
    return Pooled(
        variants,
        None if highest is None else by_name[highest.trial_id],
        untrained_is_best,
        budget,
        None if within is None else by_name[within.trial_id],
        [by_name[point.trial_id] for point in front if point.trial_id in by_name],
        untrained,
        len(data.prompts),
        num_seeds,
        fall,
        resamples,
        confirmed,
        data.num_telling,
    )


def confirm(data: ByPrompt) -> tuple[str, Confirmed]:
    """The best grid point by one half of the prompts, and its figures on the other half.

    The halves depend on the ids of the prompts alone.
    """
    order = sorted(range(len(data.prompts)), key=lambda i: data.prompts[i])
    choosing, final = order[::2], order[1::2]
    name = max(data.rewards, key=lambda each: float(data.rewards[each][:, choosing].mean()))
    kind: Kind = "share" if data.binary else "number"
    x_SP, gain_SP = data.rewards[name][:, final], None
    if data.start is not None:
        gain_SP = x_SP - data.start[final]
    of_gain: Kind = "difference" if data.binary else "number"
    return name, Confirmed(
        float(x_SP.mean()),
        pooled_interval(x_SP, kind=kind),
        None if gain_SP is None else float(gain_SP.mean()),
        None if gain_SP is None else pooled_interval(gain_SP, kind=of_gain),
        len(final),
    )


def _variants(comparison: Comparison) -> tuple[list[Variant], int]:
    """The grid points in order, without numbers, and the largest number of seeds of one."""
    groups: dict[TrialSpec, list[TrialResult]] = {}
    for result in comparison.trials:
        if result.trial is not None:
            groups.setdefault(result.trial.model_copy(update={"seed": 0}), []).append(result)
    num_seeds = max(map(len, groups.values()), default=0)
    alone = num_seeds < 2
    names = [m.name for (m,) in groups.values()] if alone else trial_names(list(groups))
    return [
        Variant(name, tuple(members), tuple(m for m in members if m.status is Status.SUCCEEDED))
        for name, members in zip(names, groups.values(), strict=True)
    ], num_seeds


def _point(variant: Variant) -> Point | None:
    """The variant as a point named after it; None if it lacks a reward or KL."""
    kl = variant.mean("kl")
    return None if variant.reward is None or kl is None else Point(variant.name, variant.reward, kl)


def _with_intervals(variants: Sequence[Variant], data: ByPrompt) -> list[Variant]:
    """Add rewards, gains and their intervals, and the intervals of KL and win rate."""
    names, gains = list(data.rewards), data.gains
    at = {name: index for index, name in enumerate(names)}
    spreads = seed_spreads([data.rewards[name] for name in names])
    of_kl = seed_spreads([data.kls[name] for name in names])
    simultaneous = gain_intervals(list(gains.values()), binary=data.binary) if gains else None
    wins = [(x > 0) + 0.5 * (x == 0) for x in gains.values()]
    of_wins = share_intervals(wins) if wins else None
    kind: Kind = "share" if data.binary else "number"
    found: list[Variant] = []
    for v in variants:
        only = v.finished[0] if v.num_seeds == 1 else None
        if v.name not in at:
            found.append(
                replace(
                    v,
                    reward=v.mean("reward_mean"),
                    reward_interval=interval(only),
                    gain=v.mean("reward_gain"),
                )
            )
            continue
        index, x_SP = at[v.name], data.rewards[v.name]
        alone = only is not None and not spreads[index].variance
        found.append(
            replace(
                v,
                reward=v.mean("reward_mean") if alone else float(x_SP.mean()),
                reward_interval=interval(only)
                if alone
                else pooled_interval(x_SP, spreads[index], kind),
                kl_interval=pooled_interval(data.kls[v.name], of_kl[index]),
                gain=float(gains[v.name].mean()) if gains else None,
                gain_interval=simultaneous[index] if simultaneous else None,
                win_interval=of_wins[index] if of_wins else None,
            )
        )
    return found


def _with_standings(
    variants: Sequence[Variant], data: ByPrompt, highest: str
) -> tuple[list[Variant], Standing | None]:
    """Add each variant's test against the policy `highest` ("": the untrained one).

    Also returns the untrained policy's.
    """
    names = list(data.rewards)
    policies = [*data.rewards.values(), *([] if data.start is None else [data.start[None]])]
    untrained = None if data.start is None else len(names)
    found = standings(policies, names.index(highest) if highest else len(names), untrained)
    if found is None:
        return list(variants), None
    by_name = dict(zip(names, found, strict=False))
    return (
        [replace(v, standing=by_name.get(v.name)) for v in variants],
        None if untrained is None else found[untrained],
    )


def _with_frontier(
    variants: Sequence[Variant], data: ByPrompt
) -> tuple[list[Variant], Resamples, float]:
    """Add the probabilities of the frontier; also the resamples and the winner's bias."""
    resamples = resample(list(data.rewards.values()), list(data.kls.values()), data.start)
    shares = dict(zip(data.rewards, on_frontier(resamples).tolist(), strict=True))
    fall = expected_fall(list(data.rewards.values()))
    return [replace(v, frontier=shares.get(v.name)) for v in variants], resamples, fall
