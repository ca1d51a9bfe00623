"""Rewards by prompt in, means with 95% intervals out: what an evaluation says, and how surely.

The prompt is the unit: several samples of one belong together and count as their mean. Two policies
are compared prompt by prompt. Intervals of a mean are studentized bootstrap intervals over prompts
(bootstrap-t: Efron 1982; Hall 1988), which follow skewed rewards where Student's t and the
percentile bootstrap miss on one side; replicates of a trial pool by a two-way analysis of variance.
Everything is seeded: equal rewards give equal numbers.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import stats

from prefsweep.sweeps.records import EvaluationSample, Metrics

CONFIDENCE = 0.95
INTERVAL_METHOD = "studentized bootstrap over prompts"
NUM_RESAMPLES = 4000
MIN_PROMPTS = 10
"""With fewer, resamples are too alike for the bootstrap, and Student's t stands in."""
MAX_FLAT = (1 - CONFIDENCE) / 4
"""Largest share of resamples without any spread; with more (nearly all rewards equal), the same."""
_MAX_CELLS = 8_000_000
"""Largest resampling matrix (resamples x prompts) that is made at once."""

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]


def reward_metrics(samples: Sequence[EvaluationSample]) -> Metrics:
    """Mean, spread and interval of a policy's rewards; all None without rewards."""
    rewards = [sample.reward for sample in samples if sample.reward is not None]
    names = ("reward_mean", "reward_std", "reward_ci_low", "reward_ci_high")
    if not rewards:
        return dict.fromkeys(names)
    low, high = bounds(mean_interval(list(prompt_rewards(samples).values())))
    std = float(np.std(rewards, ddof=1)) if len(rewards) > 1 else 0.0
    return dict(zip(names, (float(np.mean(rewards)), std, low, high), strict=True))


def paired_metrics(
    samples: Sequence[EvaluationSample], untrained: Sequence[EvaluationSample]
) -> Metrics:
    """The policy against the untrained one on the same prompts: gain in reward and win rate.

    `reward_gain` is the mean over prompts of the difference of the prompts' mean rewards;
    `win_rate` the share of prompts whose mean reward is higher, a tie counting half.
    """
    gains = paired_differences(prompt_rewards(samples), prompt_rewards(untrained))
    if not len(gains):
        names = ("reward_gain", "win_rate")
        return {f"{name}{end}": None for name in names for end in ("", "_ci_low", "_ci_high")}
    gain_low, gain_high = bounds(mean_interval(gains))
    wins = float(np.sum(gains > 0) + 0.5 * np.sum(gains == 0))
    win_low, win_high = wilson_interval(wins, len(gains))
    return {
        "reward_gain": float(np.mean(gains)),
        "reward_gain_ci_low": gain_low,
        "reward_gain_ci_high": gain_high,
        "win_rate": wins / len(gains),
        "win_rate_ci_low": win_low,
        "win_rate_ci_high": win_high,
    }


def prompt_rewards(samples: Iterable[EvaluationSample]) -> dict[str, float]:
    """prompt_id -> mean reward of its samples; prompts without reward are left out."""
    by_prompt: dict[str, list[float]] = {}
    for sample in samples:
        if sample.reward is not None:
            by_prompt.setdefault(sample.prompt_id, []).append(sample.reward)
    return {prompt: float(np.mean(rewards)) for prompt, rewards in by_prompt.items()}


def paired_differences(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Floats:
    """Ours - theirs for every prompt that both have, in our order."""
    return np.array([ours[prompt] - theirs[prompt] for prompt in ours if prompt in theirs])


def bounds(interval: Interval | None) -> tuple[float | None, float | None]:
    """An interval as two metrics, both None where there is none."""
    return (None, None) if interval is None else interval


# --- one policy ----------------------------------------------------------------------------------


def mean_interval(values: Sequence[float] | Floats) -> Interval | None:
    """95% interval of the mean of independent values; None for fewer than two.

    Studentized bootstrap: the mean minus the quantiles of (mean* - mean) / se*, times se. Equal
    values give an interval without width.
    """
    x = np.asarray(values, float)
    if len(x) < 2:
        return None
    mean, deviations = float(x.mean()), x - x.mean()
    se = float(np.sqrt(np.mean(deviations**2) / (len(x) - 1)))
    low, high = _t_quantiles(deviations) if len(x) >= MIN_PROMPTS else _student(len(x))
    return mean - high * se, mean - low * se


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
        (weights @ deviations, weights @ deviations**2) for weights in _weights(len(deviations))
    ]
    means, squares = (np.concatenate(part) for part in zip(*parts, strict=True))
    return means, squares - means**2


def _weights(num: int) -> Iterable[Floats]:
    """The shares of `num` values in the resamples, NUM_RESAMPLES rows in all, in blocks."""
    if NUM_RESAMPLES * num <= _MAX_CELLS:
        yield _kept_weights(num)
        return
    rng, left = np.random.default_rng(0), NUM_RESAMPLES
    while left:
        rows = min(left, max(1, _MAX_CELLS // num))
        yield rng.multinomial(num, np.full(num, 1 / num), rows) / num
        left -= rows


@lru_cache(maxsize=2)
def _kept_weights(num: int) -> Floats:
    return np.random.default_rng(0).multinomial(num, np.full(num, 1 / num), NUM_RESAMPLES) / num


def _student(num: int) -> Interval:
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, num - 1))
    return -quantile, quantile


def wilson_interval(wins: float, num: int) -> Interval:
    """95% Wilson score interval (Wilson 1927); `wins` may hold halves, which scipy refuses."""
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    share = wins / num
    centre = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num)) / (1 + z * z / num)
    return max(0.0, centre - half), min(1.0, centre + half)


# --- replicates ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SeedVariance:
    """How much a trial's true mean moves from seed to seed, and how surely that is known."""

    variance: float
    """Variance of one seed's mean about the mean of all seeds, beyond what the prompts explain."""
    degrees: float
    """Degrees of freedom of that estimate; infinite where there are no seeds."""


def seed_variance(groups: Iterable[Floats]) -> SeedVariance:
    """The variance between seeds, pooled over grid points; each is an array (seeds, prompts).

    Two-way analysis of variance without replication: the seeds' mean square minus that of the
    residuals, divided by the number of prompts, and never below 0.
    """
    between, residual, degrees, num_prompts = 0.0, 0.0, 0, 0
    for x_SP in groups:
        if len(x_SP) < 2:
            continue
        num_prompts, mean_S = x_SP.shape[1], x_SP.mean(1, keepdims=True)
        centred_SP = x_SP - mean_S - x_SP.mean(0) + x_SP.mean()
        between += num_prompts * float(np.sum((mean_S - x_SP.mean()) ** 2))
        residual += float(np.sum(centred_SP**2)) / max(num_prompts - 1, 1)
        degrees += len(x_SP) - 1
    if not degrees:
        return SeedVariance(0.0, float("inf"))
    between, residual = between / degrees, residual / degrees
    return SeedVariance(max(0.0, between - residual) / num_prompts, float(degrees))


def pooled_interval(x_SP: Floats, seeds: SeedVariance | None = None) -> Interval | None:
    """95% interval of the mean over prompts and seeds, both taken as samples.

    `seeds` is the variance between seeds where more than this grid point tells of it, which one
    seed alone does not. The interval over prompts, of the means over seeds, and Student's interval
    over seeds add in quadrature.
    """
    mean_P = x_SP.mean(0)
    interval, between = mean_interval(mean_P), seeds or seed_variance([x_SP])
    if interval is None or between.variance == 0.0:
        return interval
    mean = float(mean_P.mean())
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, between.degrees))
    half = quantile * math.sqrt(between.variance / len(x_SP))
    return mean - math.hypot(mean - interval[0], half), mean + math.hypot(interval[1] - mean, half)
