"""Estimates which policies would be on the frontier, or the best (within a KL budget), with other
prompts.

This is a paired bootstrap: each resample draws the same prompts for all policies, and seeds for
each policy. A single seed is not resampled: the shares then apply to these weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prefsweep.workers.statistics import Floats, resampled_shares

NUM_RESAMPLES = 1000
NUM_SPLITS = 400


@dataclass(frozen=True, slots=True)
class Resamples:
    """Mean reward and KL of every policy in every resample, (resamples, policies)."""

    rewards_RK: Floats
    kls_RK: Floats
    start_R: Floats | None
    """Mean rewards of the untrained policy, whose KL is 0; None without it."""


def resample(rewards: Sequence[Floats], kls: Sequence[Floats], start_P: Floats | None) -> Resamples:
    """Resample policies, each an array (seeds, prompts) of the same prompts in the same order."""
    num_prompts, rng = rewards[0].shape[1], np.random.default_rng(0)
    weights_RP = resampled_shares(rng, num_prompts, NUM_RESAMPLES)
    means = [
        _over_seeds(np.stack([weights_RP @ x_SP.T, weights_RP @ kl_SP.T]), rng)
        for x_SP, kl_SP in zip(rewards, kls, strict=True)
    ]
    rewards_RK, kls_RK = (np.stack([pair[i] for pair in means], 1) for i in (0, 1))
    return Resamples(rewards_RK, kls_RK, None if start_P is None else weights_RP @ start_P)


def _over_seeds(means_2RS: Floats, rng: np.random.Generator) -> Floats:
    """Means of reward and KL over resampled seeds.

    A resample of S seeds varies less than S seeds, by (S - 1) / S; the square root corrects this.
    """
    num = means_2RS.shape[2]
    mean_2R = means_2RS.mean(2)
    if num == 1:
        return mean_2R
    weights_RS = resampled_shares(rng, num, means_2RS.shape[1])
    moved_2R = np.sum(weights_RS * means_2RS, 2) - mean_2R
    return mean_2R + np.sqrt(num / (num - 1)) * moved_2R


def on_frontier(resamples: Resamples) -> Floats:
    """Share of resamples in which no other policy, nor the untrained one, dominates each policy."""
    rewards_RK, kls_RK = resamples.rewards_RK, resamples.kls_RK
    order_RK = np.lexsort((-rewards_RK, kls_RK), axis=1)
    sorted_RK = np.take_along_axis(rewards_RK, order_RK, 1)
    least_R = np.full(len(rewards_RK), -np.inf) if resamples.start_R is None else resamples.start_R
    before_RK = np.maximum.accumulate(np.column_stack([least_R, sorted_RK[:, :-1]]), axis=1)
    member_RK = np.zeros_like(order_RK, dtype=bool)
    np.put_along_axis(member_RK, order_RK, sorted_RK > before_RK, 1)
    return member_RK.mean(0)


def best_share(resamples: Resamples, chosen: int, eligible: npt.NDArray[np.bool_]) -> float:
    """Share of resamples in which `chosen` has the highest reward of the `eligible` policies.

    The untrained policy, whose KL is 0, is always eligible.
    """
    highest_R = np.where(eligible, resamples.rewards_RK, -np.inf).max(1)
    if resamples.start_R is not None:
        highest_R = np.maximum(highest_R, resamples.start_R)
    return float(np.mean(resamples.rewards_RK[:, chosen] >= highest_R))


def expected_fall(rewards: Sequence[Floats]) -> float:
    """The expected decrease of the best policy's reward on new prompts (winner's bias).

    The policy that is best on one half of the prompts has a lower reward on the other half. The
    mean of this difference over random halves is divided by the square root of 2, because chance
    is smaller with all prompts.
    """
    x_KP = np.stack([x_SP.mean(0) for x_SP in rewards])
    num_prompts, rng = x_KP.shape[1], np.random.default_rng(0)
    half = num_prompts // 2
    if half == 0 or len(x_KP) < 2:
        return 0.0
    ranks_RP = rng.random((NUM_SPLITS, num_prompts)).argsort(1)
    ours_RK = (ranks_RP < half).astype(float) @ x_KP.T / half
    theirs_RK = (ranks_RP >= half).astype(float) @ x_KP.T / (num_prompts - half)
    best_R = ours_RK.argmax(1)[:, None]
    fall_R = np.take_along_axis(ours_RK - theirs_RK, best_R, 1)
    return max(0.0, float(fall_R.mean()) / float(np.sqrt(2)))
