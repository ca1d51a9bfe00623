"""statistics: against scipy and by hand, and the coverage that an interval of 95% promises."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from prefsweep.sweeps.records import EvaluationSample
from prefsweep.workers.statistics import (
    MIN_PROMPTS,
    Floats,
    SeedSpread,
    mean_interval,
    paired_metrics,
    pooled_interval,
    prompt_rewards,
    reward_metrics,
    seed_spread,
    seed_spreads,
    wilson_interval,
)

NUM_PROMPTS = 50
NUM_DRAWS = 1000


def sample(prompt: str, reward: float | None, sample_idx: int = 0) -> EvaluationSample:
    return EvaluationSample(prompt, sample_idx, prompt, "x", "eos", 2, reward, 1.0, 1.0, -2.0)


def classifier_logits(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """A sentiment classifier's logits: a negative hill and, for three in ten, a positive one."""
    positive = rng.random(shape) < 0.3
    return np.where(positive, rng.normal(2.5, 0.8, shape), rng.normal(-2.5, 0.8, shape))


def lognormal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.lognormal(0.0, 0.75, shape)


def exponential(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.exponential(1.0, shape) - 3.0


def falling(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Skewed to the left: a bounded reward with a tail of failures."""
    return 1.0 - rng.gamma(0.7, 1.0, shape)


REWARDS: dict[Callable[[np.random.Generator, tuple[int, ...]], Floats], float] = {
    lognormal: math.exp(0.75**2 / 2),
    exponential: -2.0,
    falling: 1.0 - 0.7,
    classifier_logits: 0.3 * 2.5 - 0.7 * 2.5,
}
"""Skewed rewards -> their true mean."""


# --- the interval of a mean ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "truth"), REWARDS.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_the_95_percent_interval_covers_the_true_mean_of_skewed_rewards(
    draw: Callable[[np.random.Generator, tuple[int, ...]], Floats], truth: float
) -> None:
    data = draw(
        np.random.default_rng(0), (4 * NUM_DRAWS, NUM_PROMPTS)
    )  # 1,000 leave 0.7% to chance
    intervals = np.array([mean_interval(row) for row in data])
    covered = (intervals[:, 0] <= truth) & (truth <= intervals[:, 1])
    assert 0.93 <= covered.mean() <= 0.97


def test_it_beats_the_t_interval_where_rewards_are_most_skewed() -> None:
    data = np.random.default_rng(2).lognormal(0.0, 1.0, (NUM_DRAWS, NUM_PROMPTS))
    ours = np.array([mean_interval(row) for row in data])
    student = np.stack(
        stats.t.interval(0.95, NUM_PROMPTS - 1, data.mean(1), stats.sem(data, axis=1)), 1
    )
    covered = [
        ((i[:, 0] <= math.exp(0.5)) & (math.exp(0.5) <= i[:, 1])).mean() for i in (ours, student)
    ]
    assert covered[0] > covered[1] + 0.025
    assert covered[0] > 0.915


def test_the_interval_is_the_wider_of_the_studentized_bootstrap_done_slowly_and_students() -> None:
    values = np.random.default_rng(3).exponential(1.0, 30)
    rng, mean, se = np.random.default_rng(4), values.mean(), stats.sem(values)
    slow: list[float] = []
    for _ in range(4000):
        resample = rng.choice(values, 30)
        slow.append((resample.mean() - mean) / stats.sem(resample))
    low, high = np.quantile(slow, [0.025, 0.975])
    student = stats.t.ppf(0.975, 29)
    low, high = min(low, -student), max(high, student)
    assert mean_interval(values) == pytest.approx(
        (mean - high * se, mean - low * se), abs=0.15 * se
    )


def test_the_interval_of_many_normal_values_is_that_of_student() -> None:
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    expected = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected, abs=0.01)
    assert mean_interval(values) == mean_interval(values)


def test_few_prompts_have_students_interval_and_one_has_none() -> None:
    values = np.random.default_rng(0).exponential(1.0, MIN_PROMPTS - 1)
    expected = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected)
    assert mean_interval([1.0]) is None
    assert mean_interval([]) is None


def test_rewards_that_are_almost_all_equal_have_a_finite_interval() -> None:
    assert mean_interval([1.5] * 20) == pytest.approx((1.5, 1.5))
    values = [0.0] * 49 + [1.0]
    expected = stats.t.interval(0.95, 49, np.mean(values), stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected)


def test_the_interval_moves_and_scales_with_the_rewards() -> None:
    values = np.random.default_rng(5).lognormal(0, 1, 40)
    low, high = mean_interval(values) or (0.0, 0.0)
    assert mean_interval(1000.0 - 2.0 * values) == pytest.approx((1000 - 2 * high, 1000 - 2 * low))


def test_more_prompts_than_fit_one_matrix_give_the_same_kind_of_interval() -> None:
    values = np.random.default_rng(6).exponential(1.0, 5000)
    expected = stats.t.interval(0.95, 4999, values.mean(), stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize(("wins", "num"), [(0, 20), (3, 20), (20, 20), (41, 50)])
def test_0_1_rewards_have_wilsons_interval_and_equal_ones_a_width(wins: int, num: int) -> None:
    values = [1.0] * wins + [0.0] * (num - wins)
    expected = stats.binomtest(wins, num).proportion_ci(method="wilson")
    assert mean_interval(values, "share") == pytest.approx((expected.low, expected.high))
    rows = [sample(str(i), value) for i, value in enumerate(values)]
    metrics = reward_metrics(rows)
    assert (metrics["reward_ci_low"], metrics["reward_ci_high"]) == pytest.approx(
        (expected.low, expected.high)
    )
    assert (metrics["reward_ci_high"] or 0.0) - (metrics["reward_ci_low"] or 0.0) > 0.1


def test_samples_of_one_prompt_that_agree_count_as_one() -> None:
    shares = np.repeat([0.0, 1.0], [6, 14])
    agree = [sample(str(i), x, k) for i, x in enumerate(shares) for k in range(4)]
    low, high = mean_interval(shares, "share") or (0.0, 0.0)
    metrics = reward_metrics(agree)
    assert (metrics["reward_ci_low"], metrics["reward_ci_high"]) == pytest.approx((low, high))
    varied = mean_interval(np.repeat([0.5, 0.75], 10), "share") or (0.0, 0.0)
    assert varied[1] - varied[0] < 0.5 * (high - low)


def test_differences_of_0_1_rewards_have_bonetts_interval() -> None:
    """12 of 40 prompts won, 4 lost."""
    x = np.repeat([1.0, -1.0, 0.0], [12, 4, 24])
    won, lost = 13 / 42, 5 / 42
    half = stats.norm.ppf(0.975) * math.sqrt((won + lost - (won - lost) ** 2) / 42)
    expected = (won - lost - half, won - lost + half)
    assert mean_interval(x, "difference") == pytest.approx(expected)
    low, high = mean_interval(np.zeros(40), "difference") or (0.0, 0.0)
    assert low == pytest.approx(-high) and high > 0.05


def test_the_sample_win_rate_does_not_depend_on_the_number_of_samples() -> None:
    rng = np.random.default_rng(13)
    rates: list[dict[str, float]] = []
    for num in (1, 8):
        ours = [sample(str(i), rng.normal(0.5), k) for i in range(400) for k in range(num)]
        theirs = [sample(str(i), rng.normal(0.0), k) for i in range(400) for k in range(num)]
        metrics = paired_metrics(ours, theirs)
        rates.append({n: metrics[n] or 0.0 for n in ("win_rate", "sample_win_rate")})
    truth = float(stats.norm.cdf(0.5 / 2**0.5))
    assert [r["sample_win_rate"] for r in rates] == pytest.approx([truth, truth], abs=0.06)
    assert rates[1]["win_rate"] > rates[0]["win_rate"] + 0.1


# --- one evaluation ------------------------------------------------------------------------------


def test_samples_of_a_prompt_belong_together() -> None:
    rewards = np.random.default_rng(7).normal(0, 1, 20)
    once = [sample(str(i), reward) for i, reward in enumerate(rewards)]
    thrice = [sample(str(i), reward, k) for i, reward in enumerate(rewards) for k in range(3)]
    assert prompt_rewards(once) == pytest.approx(prompt_rewards(thrice))
    for name in ("reward_mean", "reward_ci_low", "reward_ci_high"):
        assert reward_metrics(once)[name] == pytest.approx(reward_metrics(thrice)[name])


def test_without_rewards_all_is_empty() -> None:
    assert set(reward_metrics([sample("a", None)]).values()) == {None}
    assert set(paired_metrics([sample("a", None)], [sample("a", 1.0)]).values()) == {None}
    assert set(paired_metrics([sample("a", 1.0)], [sample("b", 1.0)]).values()) == {None}


def test_one_prompt_has_a_mean_and_no_interval() -> None:
    metrics = reward_metrics([sample("a", 1.0), sample("a", 3.0, 1)])
    assert metrics["reward_mean"] == 2.0
    assert metrics["reward_ci_low"] is None and metrics["reward_ci_high"] is None


def test_the_gain_is_paired_by_prompt() -> None:
    """Prompts differ far more than policies do: only the paired interval sees the gain."""
    rng = np.random.default_rng(8)
    base = rng.normal(0, 10, 50)
    theirs = [sample(str(i), reward) for i, reward in enumerate(base)]
    ours = [sample(str(i), reward) for i, reward in enumerate(base + rng.normal(0.5, 0.5, 50))]
    metrics = paired_metrics(list(reversed(ours)), theirs)
    differences = np.array([o.reward - t.reward for o, t in zip(ours, theirs, strict=True)])  # pyright: ignore
    expected = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert metrics["reward_gain"] == pytest.approx(differences.mean())
    assert metrics["reward_gain_ci_low"] == pytest.approx(expected.low, abs=0.03)
    assert metrics["reward_gain_ci_high"] == pytest.approx(expected.high, abs=0.03)
    assert (metrics["reward_gain_ci_low"] or 0.0) > 0.2


def test_a_win_is_by_prompt_and_a_tie_is_half() -> None:
    ours = [sample("a", 2.0), sample("b", 1.0), sample("c", 0.0), sample("a", 0.5, 1)]
    theirs = [sample("a", 1.0), sample("b", 1.0), sample("c", 1.0), sample("d", 9.0)]
    metrics = paired_metrics(ours, theirs)
    assert metrics["win_rate"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert metrics["reward_gain"] == pytest.approx((0.25 + 0.0 - 1.0) / 3)


def test_the_untrained_policy_against_itself_is_a_draw() -> None:
    rows = [sample(str(i), float(i)) for i in range(20)]
    metrics = paired_metrics(rows, rows)
    assert (metrics["win_rate"], metrics["reward_gain"]) == (0.5, 0.0)
    assert (metrics["reward_gain_ci_low"], metrics["reward_gain_ci_high"]) == (0.0, 0.0)


@pytest.mark.parametrize(("wins", "num"), [(0, 10), (3, 10), (10, 10), (41, 50), (1, 1)])
def test_the_wilson_interval_is_that_of_scipy(wins: int, num: int) -> None:
    expected = stats.binomtest(wins, num).proportion_ci(method="wilson")
    assert wilson_interval(wins, num) == pytest.approx((expected.low, expected.high))


# --- replicates ----------------------------------------------------------------------------------


def replicates(
    rng: np.random.Generator, num_seeds: int, seed_std: float, num_prompts: int = NUM_PROMPTS
) -> Floats:
    """(seeds, prompts) rewards around 1: skewed prompts, noise, and a shift of every seed."""
    prompts_P = rng.exponential(1.0, num_prompts)
    noise_SP = rng.normal(0, 1, (num_seeds, num_prompts))
    return prompts_P + noise_SP + rng.normal(0, seed_std, (num_seeds, 1))


def test_the_variance_over_seeds_is_the_textbook_estimate() -> None:
    rng = np.random.default_rng(9)
    found = [seed_spread(replicates(rng, 4, 0.5)) for _ in range(400)]
    assert 4 * np.mean([s.variance - s.noise for s in found]) == pytest.approx(0.25, rel=0.1)
    assert np.mean([s.noise for s in found]) == pytest.approx(1 / 4 / NUM_PROMPTS, rel=0.1)
    assert seed_spread(replicates(rng, 1, 0.5)) == SeedSpread(0.0, 0.0, math.inf)


def test_a_missing_seed_counts_as_the_widest_spread_and_the_untrained_policy_as_none() -> None:
    rng = np.random.default_rng(9)
    policies = [replicates(rng, num, std) for num, std in ((3, 0.1), (2, 2.0), (1, 0.0), (1, 0.0))]
    calm, wide, alone, untrained = seed_spreads(policies, untrained=3)
    assert calm == seed_spread(policies[0]) and wide.variance > 10 * calm.variance
    assert (alone.variance, alone.degrees) == (2 * wide.variance, 1.0)
    assert untrained == SeedSpread()


@pytest.mark.parametrize(("num_seeds", "seed_std"), [(2, 0.1), (3, 0.0), (3, 0.4), (5, 1.0)])
def test_the_pooled_interval_covers_prompts_and_seeds(num_seeds: int, seed_std: float) -> None:
    rng, covered = np.random.default_rng(10), 0
    for _ in range(NUM_DRAWS):
        low, high = pooled_interval(replicates(rng, num_seeds, seed_std)) or (math.inf, math.inf)
        covered += low <= 1.0 <= high
    assert 0.93 <= covered / NUM_DRAWS <= (0.97 if num_seeds > 2 else 1.0)


def test_the_interval_over_prompts_alone_misses_what_seeds_differ_by() -> None:
    """What pooling is for: with seeds that differ, prompts alone promise too much."""
    rng, covered = np.random.default_rng(11), 0
    for _ in range(300):
        low, high = mean_interval(replicates(rng, 3, 1.0).mean(0)) or (0.0, 0.0)
        covered += low <= 1.0 <= high
    assert covered / 300 < 0.7


def test_one_seed_and_equal_seeds_pool_to_the_interval_over_prompts() -> None:
    x_P = np.random.default_rng(12).exponential(1.0, 40)
    assert pooled_interval(x_P[None]) == mean_interval(x_P)
    assert pooled_interval(np.stack([x_P, x_P])) == mean_interval(x_P)


def test_seeds_of_constant_rewards_still_have_an_interval() -> None:
    x_SP = np.repeat([[0.0], [1.0], [2.0]], 20, axis=1)
    half = stats.t.ppf(0.975, 2) * math.sqrt(1.0 / 3)
    assert pooled_interval(x_SP) == pytest.approx((1 - half, 1 + half))
    known = SeedSpread(1.0 / 3, 0.0, math.inf)
    assert pooled_interval(x_SP, known) == pytest.approx(
        (1 - 1.96 / 3**0.5, 1 + 1.96 / 3**0.5), abs=1e-4
    )
