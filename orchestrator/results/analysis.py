"""Compares the policies of a sweep: pools seeds, finds the best grid point and the Pareto set.

Only grid points with a finite reward and KL compete. The untrained policy competes for the Pareto
set with its reward at KL 0. Whether a grid point differs significantly from the best one is tested
for all of them at once (workers/comparisons.py), the untrained policy included.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prefsweep.sweeps.grid import TrialSpec, trial_names
from prefsweep.sweeps.records import Status, SweepResults, TrialResult
from prefsweep.workers.comparisons import METHOD, Standing, standings
from prefsweep.workers.statistics import (
    INTERVAL_METHOD,
    Floats,
    Interval,
    pooled_interval,
    prompt_rewards,
    seed_variance,
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


def compare(results: SweepResults) -> Comparison:
    """Separate the untrained policy, the trials and the trials that succeeded."""
    trials = [result for result in results.results if result.trial is not None]
    untrained = next((result for result in results.results if result.trial is None), None)
    finished = [result for result in trials if result.status is Status.SUCCEEDED]
    return Comparison(untrained=untrained, trials=trials, finished=finished)


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
    gain: float | None = None
    """Reward minus the untrained policy's, paired by prompt."""
    gain_interval: Interval | None = None
    standing: Standing | None = None
    """The test against the best variant."""

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
class Pooled:
    """All variants of a sweep, in grid order."""

    variants: list[Variant]
    best: Variant | None
    """The variant with the highest reward."""
    budget: float | None
    """Median KL of the variants with a reward, nats; None for fewer than two."""
    best_within: Variant | None
    """The variant with the highest reward at a KL of at most `budget`."""
    pareto: list[Variant]
    """Variants that no other variant and not the untrained policy dominates, by KL ascending."""
    untrained: Standing | None
    """The test of the untrained policy against the best variant."""
    num_prompts: int
    """Held-out prompts with a reward from every policy."""
    num_seeds: int
    """Largest number of seeds of a variant, finished or not."""

    @property
    def peers(self) -> list[Variant]:
        """The other variants that are not significantly different from the best."""
        return [v for v in self.variants if v.indistinguishable and v is not self.best]

    @property
    def by_trial(self) -> dict[str, Variant]:
        """trial_id -> its variant."""
        return {member.trial_id: v for v in self.variants for member in v.members}


def pool(comparison: Comparison) -> Pooled:
    """Pool a sweep's trials over their seeds and compare all with the best."""
    groups: dict[TrialSpec, list[TrialResult]] = {}
    for result in comparison.trials:
        if result.trial is not None:
            groups.setdefault(result.trial.model_copy(update={"seed": 0}), []).append(result)
    num_seeds = max(map(len, groups.values()), default=0)
    alone = num_seeds < 2
    names = [m.name for (m,) in groups.values()] if alone else trial_names(list(groups))
    variants = [
        Variant(name, tuple(members), tuple(m for m in members if m.status is Status.SUCCEEDED))
        for name, members in zip(names, groups.values(), strict=True)
    ]
    rewards, start, num_prompts = _by_prompt(variants, comparison.untrained)
    variants = _with_rewards(variants, rewards, start)
    points, untrained = [p for p in map(_point, variants) if p is not None], None
    highest = best(points)
    if highest is not None and highest.trial_id in rewards:
        variants, untrained = _with_standings(variants, rewards, start, highest.trial_id)
    by_name = {variant.name: variant for variant in variants}
    budget = statistics.median(point.kl for point in points) if len(points) > 1 else None
    within = None if budget is None else best_within(points, budget)
    front = pareto([*untrained_point(comparison.untrained), *points])
    return Pooled(
        variants,
        None if highest is None else by_name[highest.trial_id],
        budget,
        None if within is None else by_name[within.trial_id],
        [by_name[point.trial_id] for point in front if point.trial_id in by_name],
        untrained,
        num_prompts,
        num_seeds,
    )


def _point(variant: Variant) -> Point | None:
    """The variant as a point named after it; None if it lacks a reward or KL."""
    kl = variant.mean("kl")
    return None if variant.reward is None or kl is None else Point(variant.name, variant.reward, kl)


def _by_prompt(
    variants: Sequence[Variant], untrained: TrialResult | None
) -> tuple[dict[str, Floats], Floats | None, int]:
    """Rewards (seeds, prompts) by variant, the untrained policy's (1, prompts), number of prompts.

    Only prompts that every policy with rewards has are used.
    """
    found = {
        v.name: [rewards for m in v.finished if (rewards := prompt_rewards(m.samples))]
        for v in variants
    }
    start = prompt_rewards(untrained.samples) if untrained is not None else {}
    policies = [rewards for seeds in found.values() for rewards in seeds]
    every = [*policies, start] if start else policies
    prompts = [p for p in every[0] if all(p in rewards for rewards in every)] if every else []
    if not prompts:
        return {}, None, 0
    tables = {name: reward_table(seeds, prompts) for name, seeds in found.items() if seeds}
    return tables, reward_table([start], prompts) if start else None, len(prompts)


def reward_table(policies: Sequence[Mapping[str, float]], prompts: Sequence[str]) -> Floats:
    """Rewards of some policies on some prompts, (policies, prompts)."""
    return np.array([[rewards[prompt] for prompt in prompts] for rewards in policies])


def _with_rewards(
    variants: Sequence[Variant], rewards: Mapping[str, Floats], start: Floats | None
) -> list[Variant]:
    """Add pooled rewards; a single seed keeps its own unless other variants show seed variance."""
    seeds, pooled = seed_variance(rewards.values()), list[Variant]()
    for variant in variants:
        x_SP = rewards.get(variant.name)
        if x_SP is None or (variant.num_seeds == 1 and not seeds.variance):
            only = variant.finished[0] if variant.num_seeds == 1 else None
            pooled.append(
                replace(
                    variant,
                    reward=variant.mean("reward_mean"),
                    reward_interval=interval(only),
                    gain=variant.mean("reward_gain"),
                    gain_interval=interval(only, "reward_gain"),
                )
            )
            continue
        pooled.append(
            replace(
                variant,
                reward=float(x_SP.mean()),
                reward_interval=pooled_interval(x_SP, seeds),
                gain=None if start is None else float(np.mean(x_SP - start)),
                gain_interval=None if start is None else pooled_interval(x_SP - start, seeds),
            )
        )
    return pooled


def _with_standings(
    variants: Sequence[Variant], rewards: Mapping[str, Floats], start: Floats | None, highest: str
) -> tuple[list[Variant], Standing | None]:
    """Add each variant's test against the best; also returns the untrained policy's."""
    names = list(rewards)
    policies = [*rewards.values(), *([] if start is None else [start])]
    untrained = None if start is None else len(names)
    found = standings(policies, names.index(highest), untrained)
    if found is None:
        return list(variants), None
    by_name = dict(zip(names, found, strict=False))
    return (
        [replace(v, standing=by_name.get(v.name)) for v in variants],
        None if untrained is None else found[untrained],
    )
