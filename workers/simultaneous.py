"""Simultaneous intervals for all policies: gains and win rates against the untrained policy.

In at least 95% of sweeps, every true value is within its interval, so the largest of many gains
needs no correction (Dunnett 1955, many against one). Gains: studentized bootstrap over prompts of
the largest and the smallest deviation (max-t), with the same prompts for all policies. Win rates:
Wilson's interval at the joint level. Seeds widen both, each policy by its own variance.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from prefsweep.workers.comparisons import simulated_errors, welch_degrees
from prefsweep.workers.statistics import (
    CONFIDENCE,
    MAX_FLAT,
    MIN_PROMPTS,
    NORMAL_QUANTILE,
    Floats,
    Interval,
    SeedSpread,
    resampling_weights,
    seed_spreads,
    wilson_interval,
)

NUM_DRAWS = 4000
_BLOCK = 256
"""Number of policies that are resampled at a time."""


def gain_intervals(gains: Sequence[Floats], *, binary: bool = False) -> list[Interval] | None:
    """Simultaneous 95% intervals of mean gains; None for fewer than two prompts.

    A gain is an array (seeds, prompts), with the same prompts in the same order for all policies.
    With `binary` rewards (0 or 1), few prompts may differ: one extra prompt is counted as won and
    one as lost, with Student's quantiles.
    """
    if binary:
        gains = [np.column_stack([x, np.ones(len(x)), -np.ones(len(x))]) for x in gains]
    x_KP = np.stack([x_SP.mean(0) for x_SP in gains])
    num_prompts = x_KP.shape[1]
    if num_prompts < 2:
        return None
    spreads = seed_spreads(gains)
    prompts_K, seeds_K = _variances(x_KP, spreads)
    se_K, level = np.sqrt(prompts_K + seeds_K), _joint_level(x_KP, seeds_K)
    student = float(stats.t.isf(level / 2, num_prompts - 1))
    resampled = num_prompts >= MIN_PROMPTS and not binary
    low, high = _largest_t(x_KP) if resampled else (0.0, 0.0)
    low, high = min(low, -student), max(high, student)
    wider_K = _t_quantiles(prompts_K, spreads, level, num_prompts) / student
    return [
        (float(mean - high * se), float(mean - low * se))
        for mean, se in zip(x_KP.mean(1), se_K * wider_K, strict=True)
    ]


def share_intervals(wins: Sequence[Floats]) -> list[Interval]:
    """Simultaneous 95% intervals of win rates, from 1, 0.5 or 0 per prompt, (seeds, prompts)."""
    x_KP = np.stack([x_SP.mean(0) for x_SP in wins])
    num_prompts, spreads = x_KP.shape[1], seed_spreads(wins)
    prompts_K, seeds_K = _variances(x_KP, spreads)
    level = _joint_level(x_KP, seeds_K)
    z = float(stats.norm.isf(level / 2))
    if not seeds_K.any():
        return [wilson_interval(float(x_P.sum()), num_prompts, z) for x_P in x_KP]
    t_K = _t_quantiles(prompts_K, spreads, level, num_prompts)
    variance_K, share_K = prompts_K + seeds_K, x_KP.mean(1)
    sizes_K = np.array([float(x_SP.size) for x_SP in wins])
    binomial_K = share_K * (1 - share_K)
    size_K = np.divide(
        binomial_K, variance_K, out=np.full_like(share_K, num_prompts), where=variance_K > 0
    )
    size_K = np.where(binomial_K > 0, np.minimum(size_K, sizes_K), num_prompts)
    return [
        wilson_interval(float(share * size), float(size), float(t))
        for share, size, t in zip(share_K, size_K, t_K, strict=True)
    ]


def _variances(x_KP: Floats, spreads: Sequence[SeedSpread]) -> tuple[Floats, Floats]:
    """Variances of the means over prompts and over seeds."""
    seeds_K, off_K = np.array([(s.variance, s.off_prompts) for s in spreads]).T
    prompts_K = x_KP.var(1, ddof=min(1, x_KP.shape[1] - 1)) / x_KP.shape[1]
    return np.maximum(prompts_K - off_K, 0.0), seeds_K


def _t_quantiles(
    prompts_K: Floats, spreads: Sequence[SeedSpread], level: float, num_prompts: int
) -> Floats:
    """Student's quantiles at `level`, with the joint degrees of freedom of prompts and seeds."""
    degrees_K = welch_degrees(prompts_K, num_prompts, [[spread] for spread in spreads])
    return stats.t.isf(level / 2, degrees_K)


def _joint_level(x_KP: Floats, seeds_K: Floats) -> float:
    """The error rate of each interval at which all intervals hold in 95% of cases.

    The means are assumed to be jointly normal, with the correlation over prompts; seeds are
    independent.
    """
    num, num_prompts = x_KP.shape
    if num == 1:
        return 1 - CONFIDENCE
    deviations_KP = x_KP - x_KP.mean(1, keepdims=True)
    errors_RK = simulated_errors(deviations_KP, seeds_K, NUM_DRAWS)
    scale = np.sqrt(num_prompts * max(num_prompts - 1, 1))
    variance_K = np.sum(deviations_KP**2, 1) / scale**2 + seeds_K
    errors_RK /= np.sqrt(np.where(variance_K > 0, variance_K, np.inf))
    largest = float(np.quantile(np.abs(errors_RK).max(1), CONFIDENCE))
    return float(2 * stats.norm.sf(max(largest, NORMAL_QUANTILE)))


def _largest_t(x_KP: Floats) -> Interval:
    """Quantiles of the smallest and of the largest studentized mean over resamples of prompts.

    Policies with hardly any spread in many resamples are left out; (0, 0) if all are.
    """
    num_prompts = x_KP.shape[1]
    weights = np.concatenate(list(resampling_weights(num_prompts)))
    low_R, high_R = np.zeros(len(weights)), np.zeros(len(weights))
    for start in range(0, len(x_KP), _BLOCK):
        block_KP = x_KP[start : start + _BLOCK]
        deviations_PK = (block_KP - block_KP.mean(1, keepdims=True)).T
        means_RK = weights @ deviations_PK
        variances_RK = weights @ deviations_PK**2 - means_RK**2
        spread_RK = variances_RK > 1e-9 * np.mean(deviations_PK**2, 0)
        spread_RK &= spread_RK.mean(0) >= 1 - MAX_FLAT
        roots_RK = np.sqrt(np.where(spread_RK, variances_RK, np.inf) / (num_prompts - 1))
        t_RK = means_RK / roots_RK
        low_R, high_R = np.minimum(low_R, t_RK.min(1)), np.maximum(high_R, t_RK.max(1))
    low, high = np.quantile(low_R, (1 - CONFIDENCE) / 2), np.quantile(high_R, (1 + CONFIDENCE) / 2)
    return float(low), float(high)
