"""Estimates how many seeds would make differences between grid points significant.

It only uses metrics, as needed by `plan`. The measured differences are assumed to be the true ones.
The variation of a mean over seeds is estimated if there are several seeds, and otherwise assumed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from prefsweep.orchestrator.results.analysis import Pooled, Variant, interval, metric
from prefsweep.workers.comparisons import ERROR_RATE
from prefsweep.workers.statistics import NORMAL_QUANTILE

MAX_SEEDS = 10
POWER = 0.8
ASSUMED_SHARE = 0.1
"""Standard deviation of a mean over seeds, as a share of that of the gain over prompts; assumed if
every grid point has only one seed."""


@dataclass(frozen=True, slots=True)
class SeedAdvice:
    """A number of seeds per grid point, and what it would show."""

    num_seeds: int
    num_told_apart: int
    """Number of other grid points whose difference from the best would be significant with a power
    of 80%, if the true differences are the measured ones."""
    num_others: int
    seed_std: float
    """Standard deviation of a mean reward over seeds."""
    assumed: bool
    """Whether `seed_std` is assumed, because there is only one seed."""


def seed_advice(pooled: Pooled, num_seeds: int = 0) -> SeedAdvice | None:
    """The fewest seeds that tell apart half of what ten would; None if ten tell nothing.

    Also None where `num_seeds`, by default those there are, already do.
    """
    best, others = pooled.best, [v for v in pooled.variants if v.reward is not None]
    others = [v for v in others if v is not best]
    if best is None or best.reward is None or not others:
        return None
    of_gain = float(np.median([_gain_variance(v) for v in (best, *others)]))
    variance, seed_std = _pair_variance(pooled, of_gain), _seed_std([best, *others])
    assumed = seed_std is None
    if seed_std is None:
        seed_std = ASSUMED_SHARE * math.sqrt(of_gain * max(_num_prompts(best), 1.0))
    gaps = [best.reward - (v.reward or 0.0) for v in others]
    told = {
        num: sum(gap >= _detectable(num, variance, seed_std, len(others) + 2) for gap in gaps)
        for num in range(2, MAX_SEEDS + 1)
    }
    most = told[MAX_SEEDS]
    fewest = next((num for num, count in told.items() if count and 2 * count >= most), None)
    if fewest is None or fewest <= (num_seeds or pooled.num_seeds):
        return None
    return SeedAdvice(fewest, told[fewest], len(others), seed_std, assumed)


def _detectable(num_seeds: int, variance: float, seed_std: float, num_policies: int) -> float:
    """The difference that is detected with POWER, at ERROR_RATE over all pairs (Bonferroni)."""
    degrees, pairs = 2 * (num_seeds - 1), num_policies * (num_policies - 1) / 2
    quantiles = stats.t.isf(ERROR_RATE / 2 / pairs, degrees) + stats.t.ppf(POWER, degrees)
    return float(quantiles) * math.sqrt(variance + 2 * seed_std**2 / num_seeds)


def _pair_variance(pooled: Pooled, of_gain: float) -> float:
    """Variance over prompts of the difference between the means of two grid points.

    The variance of a gain is used instead if seeds vary too, or without samples.
    """
    if pooled.resamples is None or pooled.num_seeds > 1:
        return of_gain
    rewards_RK = pooled.resamples.rewards_RK
    differences = rewards_RK - rewards_RK[:, [int(rewards_RK.mean(0).argmax())]]
    return float(np.median(differences.var(0)))


def _gain_variance(variant: Variant) -> float:
    """Variance over prompts of the mean gain, from its interval."""
    ends = [interval(result, "reward_gain") for result in variant.finished]
    widths = [high - low for low, high in filter(None, ends)]
    return float(np.mean(np.square(widths))) / (2 * NORMAL_QUANTILE) ** 2 if widths else 0.0


def _seed_std(variants: Sequence[Variant]) -> float | None:
    """Root of the mean variance of rewards over seeds; None if no grid point has two seeds."""
    rewards = [[metric(result, "reward_mean") for result in v.finished] for v in variants]
    there = [[r for r in of_seeds if r is not None] for of_seeds in rewards]
    variances = [float(np.var(r, ddof=1)) for r in there if len(r) > 1]
    return math.sqrt(float(np.mean(variances))) if variances else None


def _num_prompts(variant: Variant) -> float:
    return metric(variant.finished[0], "num_prompts") or 0.0 if variant.finished else 0.0
