"""Means of rewards with 95% intervals, from rewards by prompt.

The unit is the prompt: several samples of a prompt count as their mean. Two policies are compared
prompt by prompt. Intervals of a mean are studentized bootstrap intervals over prompts (bootstrap-t:
Efron 1982; Hall 1988). They follow skewed rewards, where Student's t and the percentile bootstrap
miss on one side, and are widened to Student's interval where that is wider. Seeds of a trial are a
second sample; each grid point has its own variance over seeds. Everything is seeded, so equal
rewards give equal numbers.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from prefsweep.sweeps.records import EvaluationSample, Metrics

CONFIDENCE = 0.95
NORMAL_QUANTILE = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
INTERVAL_METHOD = "studentized bootstrap over prompts"
NUM_RESAMPLES = 4000
MIN_PROMPTS = 10
"""With fewer prompts, resamples are too similar for the bootstrap, and Student's t is used."""
MAX_FLAT = (1 - CONFIDENCE) / 4
"""Maximum share of resamples without spread; above it (nearly all rewards equal), Student's t is
used."""
_MAX_CELLS = 8_000_000
"""Maximum size of a resampling matrix (resamples x prompts)."""

Kind = Literal["number", "share", "difference"]
"""The values of prompts: any numbers, means of 0/1 rewards, or differences of such means."""
Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]


def reward_metrics(samples: Sequence[EvaluationSample]) -> Metrics:
    """Mean, spread and interval of a policy's rewards; all None without rewards."""
    rewards = [sample.reward for sample in samples if sample.reward is not None]
    names = ("reward_mean", "reward_std", "reward_ci_low", "reward_ci_high")
    if not rewards:
        return dict.fromkeys(names)
    kind: Kind = "share" if are_binary(rewards) else "number"
    low, high = bounds(mean_interval(list(prompt_rewards(samples).values()), kind))
    std = float(np.std(rewards, ddof=1)) if len(rewards) > 1 else 0.0
    return dict(zip(names, (float(np.mean(rewards)), std, low, high), strict=True))


def paired_metrics(
    samples: Sequence[EvaluationSample], untrained: Sequence[EvaluationSample]
) -> Metrics:
    """Compare the policy with the untrained one on the same prompts: gain in reward and win rate.

    `reward_gain` is the mean over prompts of the difference of the prompts' mean rewards;
    `win_rate` the share of prompts whose mean reward is higher, a tie counting half, which depends
    on the number of samples; `sample_win_rate` the chance that one sample beats one of the
    untrained policy's for the same prompt, which does not.
    """
    gains = paired_differences(prompt_rewards(samples), prompt_rewards(untrained))
    if not len(gains):
        names = ("reward_gain", "win_rate", "sample_win_rate")
        return {f"{name}{end}": None for name in names for end in ("", "_ci_low", "_ci_high")}
    binary = are_binary(s.reward for s in (*samples, *untrained))
    gain_low, gain_high = bounds(mean_interval(gains, "difference" if binary else "number"))
    shares = sample_wins(samples, untrained)
    share_low, share_high = bounds(mean_interval(shares, "share"))
    wins = float(np.sum(gains > 0) + 0.5 * np.sum(gains == 0))
    win_low, win_high = wilson_interval(wins, len(gains))
    return {
        "reward_gain": float(np.mean(gains)),
        "reward_gain_ci_low": gain_low,
        "reward_gain_ci_high": gain_high,
        "win_rate": wins / len(gains),
        "win_rate_ci_low": win_low,
        "win_rate_ci_high": win_high,
        "sample_win_rate": float(np.mean(shares)),
        "sample_win_rate_ci_low": share_low,
        "sample_win_rate_ci_high": share_high,
    }


def sample_wins(samples: Sequence[EvaluationSample], others: Sequence[EvaluationSample]) -> Floats:
    """By prompt, the share of pairs (a sample, one of the other policy) that the sample wins."""
    ours, theirs = rewards_by_prompt(samples), rewards_by_prompt(others)
    return np.array(
        [
            float(np.mean(0.5 + 0.5 * np.sign(np.subtract.outer(rewards, theirs[prompt]))))
            for prompt, rewards in ours.items()
            if prompt in theirs
        ]
    )


def are_binary(rewards: Iterable[float | None]) -> bool:
    """Whether all rewards are 0 or 1."""
    return all(reward in (None, 0.0, 1.0) for reward in rewards)


def prompt_kls(samples: Iterable[EvaluationSample]) -> dict[str, float]:
    """prompt_id -> mean KL of its samples, nats."""
    by_prompt: dict[str, list[float]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.prompt_id, []).append(sample.kl)
    return {prompt: float(np.mean(kls)) for prompt, kls in by_prompt.items()}


def prompt_rewards(samples: Iterable[EvaluationSample]) -> dict[str, float]:
    """prompt_id -> mean reward of its samples; prompts without reward are left out."""
    return {p: float(np.mean(rewards)) for p, rewards in rewards_by_prompt(samples).items()}


def rewards_by_prompt(samples: Iterable[EvaluationSample]) -> dict[str, list[float]]:
    """prompt_id -> the rewards of its samples; prompts without reward are left out."""
    by_prompt: dict[str, list[float]] = {}
    for sample in samples:
        if sample.reward is not None:
            by_prompt.setdefault(sample.prompt_id, []).append(sample.reward)
    return by_prompt


def paired_differences(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Floats:
    """Ours minus theirs for every prompt that both have, in the order of ours."""
    return np.array([ours[prompt] - theirs[prompt] for prompt in ours if prompt in theirs])


def bounds(interval: Interval | None) -> tuple[float | None, float | None]:
    """An interval as two metrics, both None without an interval."""
    return (None, None) if interval is None else interval


# --- one policy ----------------------------------------------------------------------------------


def mean_interval(values: Sequence[float] | Floats, kind: Kind = "number") -> Interval | None:
    """95% interval of the mean of independent values; None for fewer than two.

    Studentized bootstrap: the mean minus the quantiles of (mean* - mean) / se*, times se; on each
    side at least as wide as Student's interval, which covers heavy tails. Equal numbers give an
    interval of width 0. Shares and their differences have other intervals, because equal observed
    shares do not imply that further ones are equal.
    """
    x = np.asarray(values, float)
    if len(x) < 2:
        return None
    if kind == "share":
        return share_interval(x)
    if kind == "difference":
        return difference_interval(x)
    mean, deviations = float(x.mean()), x - x.mean()
    se = float(np.sqrt(np.mean(deviations**2) / (len(x) - 1)))
    low, high = _student(len(x))
    if len(x) >= MIN_PROMPTS:
        resampled = _t_quantiles(deviations)
        low, high = min(low, resampled[0]), max(high, resampled[1])
    return mean - high * se, mean - low * se


def share_interval(x: Floats) -> Interval:
    """Wilson's interval of a mean of values in [0, 1], by the effective number of prompts.

    This is the number of 0/1 values whose mean has the same variance; for 0/1 values, their number.
    """
    share, variance = float(x.mean()), float(x.var())
    num = share * (1 - share) / variance * len(x) if variance else len(x)
    return wilson_interval(share * num, num)


def difference_interval(x: Floats) -> Interval:
    """Interval of a mean of paired differences of 0/1 rewards (Bonett and Price 2012).

    One extra prompt is counted as won and one as lost; for 0/1 values this is their interval.
    """
    more = np.concatenate([x, [1.0, -1.0]])
    half = NORMAL_QUANTILE * math.sqrt(float(more.var()) / len(more))
    return max(-1.0, float(more.mean()) - half), min(1.0, float(more.mean()) + half)


def _t_quantiles(deviations: Floats) -> Interval:
    """Quantiles of the studentized mean over resamples of `deviations`, whose mean is 0."""
    n, scale = len(deviations), float(np.mean(deviations**2))
    means, variances = _resampled(deviations)
    spread = variances > 1e-9 * scale
    if np.mean(spread) < 1 - MAX_FLAT:
        return _student(n)
    studentized = means[spread] / np.sqrt(variances[spread] / (n - 1))
    low, high = np.quantile(studentized, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _resampled(deviations: Floats) -> tuple[Floats, Floats]:
    """Mean and variance (divided by n) of every resample."""
    parts = [
        (weights @ deviations, weights @ deviations**2)
        for weights in resampling_weights(len(deviations))
    ]
    means, squares = (np.concatenate(part) for part in zip(*parts, strict=True))
    return means, squares - means**2


def resampling_weights(num: int) -> Iterable[Floats]:
    """The shares of `num` values in the resamples, in blocks of rows; NUM_RESAMPLES in total."""
    if NUM_RESAMPLES * num <= _MAX_CELLS:
        yield _kept_weights(num)
        return
    rng, left = np.random.default_rng(0), NUM_RESAMPLES
    while left:
        rows = min(left, max(1, _MAX_CELLS // num))
        yield resampled_shares(rng, num, rows)
        left -= rows


@lru_cache(maxsize=2)
def _kept_weights(num: int) -> Floats:
    return resampled_shares(np.random.default_rng(0), num, NUM_RESAMPLES)


def resampled_shares(rng: np.random.Generator, num: int, rows: int) -> Floats:
    """The share (rows, num) of each of `num` items in bootstrap resamples of them."""
    return rng.multinomial(num, np.full(num, 1 / num), rows) / num


def _student(num: int) -> Interval:
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, num - 1))
    return -quantile, quantile


def wilson_interval(wins: float, num: float, z: float = NORMAL_QUANTILE) -> Interval:
    """Wilson score interval (Wilson 1927), of 95% by default.

    `wins` may contain halves, which scipy refuses; `num` is the effective number of prompts.
    """
    share = wins / num
    centre = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num)) / (1 + z * z / num)
    return max(0.0, centre - half), min(1.0, centre + half)


# --- replicates ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SeedSpread:
    """The variance of one policy's mean over its seeds; all zero for a single seed."""

    variance: float = 0.0
    """Variance of the mean: the variance of the seeds' means, divided by their number."""
    noise: float = 0.0
    """The part of it that is due to completions, which more prompts would reduce."""
    degrees: float = math.inf
    """Degrees of freedom of `variance`."""

    @property
    def off_prompts(self) -> float:
        """The part of `noise` that is subtracted from the variance over prompts, which contains it.

        The variance of two seeds is too often small by chance to be reduced.
        """
        return self.noise if self.degrees == 1 else 0.0

    @property
    def off_seeds(self) -> float:
        """The part of `noise` that is subtracted from `variance`; only with three or more seeds."""
        return 0.0 if self.degrees == 1 else min(self.noise, self.variance)


def seed_spread(x_SP: Floats) -> SeedSpread:
    """The spread of one policy, an array (seeds, prompts); it is not pooled with other policies.

    Two-way analysis of variance without replication: the mean squares of seeds and of residuals.
    """
    num_seeds, num_prompts = x_SP.shape
    if num_seeds < 2:
        return SeedSpread()
    mean_S = x_SP.mean(1, keepdims=True)
    residual_SP = x_SP - mean_S - x_SP.mean(0) + x_SP.mean()
    degrees = num_seeds - 1
    residual = float(np.sum(residual_SP**2)) / (degrees * max(num_prompts - 1, 1))
    variance = float(np.var(mean_S, ddof=1)) / num_seeds
    return SeedSpread(variance, residual / (num_seeds * num_prompts), float(degrees))


def seed_spreads(policies: Sequence[Floats], untrained: int | None = None) -> list[SeedSpread]:
    """The spread of every policy.

    For a policy with only one seed, the largest spread of the others is assumed. The policy at
    `untrained` was not trained and does not vary.
    """
    found = [seed_spread(x_SP) for x_SP in policies]
    per_seed = [
        SeedSpread(s.variance * len(x_SP), s.noise * len(x_SP), s.degrees)
        for s, x_SP in zip(found, policies, strict=True)
    ]
    widest = max(per_seed, key=lambda spread: spread.variance, default=SeedSpread())
    return [
        widest if len(x_SP) == 1 and index != untrained else spread
        for index, (spread, x_SP) in enumerate(zip(found, policies, strict=True))
    ]


def pooled_interval(
    x_SP: Floats, spread: SeedSpread | None = None, kind: Kind = "number"
) -> Interval | None:
    """95% interval of the mean over prompts and seeds, both regarded as samples.

    `spread` is used if the policy has only one seed.
    """
    return over_seeds(x_SP.mean(0), [spread or seed_spread(x_SP)], kind)


def over_seeds(
    x_P: Floats, spreads: Sequence[SeedSpread], kind: Kind = "number"
) -> Interval | None:
    """95% interval of the mean of `x_P`, whose values are means over the seeds of `spreads`.

    The interval over prompts and Student's interval over seeds add in quadrature, which covers at
    least 95% whatever the two variances are (Banerjee 1961).
    """
    interval = mean_interval(x_P, kind)
    if interval is None or not any(spread.variance for spread in spreads):
        return interval
    mean, prompts = float(x_P.mean()), float(np.var(x_P, ddof=1)) / len(x_P)
    of_prompts = max(0.0, prompts - sum(spread.off_prompts for spread in spreads))
    quantiles = [float(stats.t.ppf((1 + CONFIDENCE) / 2, s.degrees)) for s in spreads]
    halves = [
        q * math.sqrt(s.variance - s.off_seeds) for q, s in zip(quantiles, spreads, strict=True)
    ]
    of_seeds = math.hypot(*halves)
    share = math.sqrt(of_prompts / prompts) if prompts else 0.0
    down, up = (mean - interval[0]) * share, (interval[1] - mean) * share
    return mean - math.hypot(down, of_seeds), mean + math.hypot(up, of_seeds)
