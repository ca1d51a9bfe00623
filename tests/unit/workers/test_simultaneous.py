"""simultaneous and resampled: intervals that hold at once, the frontier and the winner's bias."""

import numpy as np
import pytest
from scipy import stats

from prefsweep.workers.resampled import Resamples, best_share, expected_fall, on_frontier, resample
from prefsweep.workers.simultaneous import gain_intervals, share_intervals
from prefsweep.workers.statistics import Floats, mean_interval, wilson_interval

NUM_SWEEPS = 150


def gains(rng: np.random.Generator, num: int, seeds: int = 1, num_prompts: int = 40) -> Floats:
    """Gains of policies that are no better than the untrained one, which all share."""
    x = rng.exponential(1.0, (num + 1, seeds, num_prompts))
    return x[1:] - x[0, :1]


def test_one_gain_alone_has_the_interval_of_a_mean() -> None:
    x_SP = gains(np.random.default_rng(0), 1)[0]
    [interval] = gain_intervals([x_SP]) or []
    assert interval == pytest.approx(mean_interval(x_SP[0]), abs=1e-9)


@pytest.mark.parametrize(("num", "seeds"), [(18, 1), (10, 3)])
def test_all_gains_and_win_rates_are_covered_at_once(num: int, seeds: int) -> None:
    rng, held, won = np.random.default_rng(1), 0, 0
    for _ in range(NUM_SWEEPS):
        found = list(gains(rng, num, seeds))
        held += all(low <= 0 <= high for low, high in gain_intervals(found) or [])
        wins = [(x > 0) + 0.5 * (x == 0) for x in found]
        won += all(low <= 0.5 <= high for low, high in share_intervals(wins))
    assert held / NUM_SWEEPS >= 0.92 and won / NUM_SWEEPS >= 0.92


def test_each_alone_would_miss_one_of_eighteen_in_too_many_sweeps() -> None:
    """What they are for."""
    rng, wrong = np.random.default_rng(2), 0
    for _ in range(NUM_SWEEPS):
        intervals = [mean_interval(x[0]) or (0.0, 0.0) for x in gains(rng, 18)]
        wrong += any(low > 0 or high < 0 for low, high in intervals)
    assert wrong / NUM_SWEEPS > 0.15


def test_many_independent_gains_have_sidaks_level() -> None:
    x = np.random.default_rng(3).normal(0, 1, (10, 1, 2000))
    z = stats.norm.isf((1 - 0.95**0.1) / 2)
    for (low, high), of in zip(gain_intervals(list(x)) or [], x, strict=True):
        half = z * stats.sem(of[0])
        assert (low, high) == pytest.approx((of.mean() - half, of.mean() + half), abs=0.15 * half)


def test_policies_that_answer_alike_need_no_correction() -> None:
    x_SP = gains(np.random.default_rng(4), 1)[0]
    [alone], several = gain_intervals([x_SP]) or [], gain_intervals([x_SP] * 5) or []
    assert several[0] == pytest.approx(alone, rel=0.05)
    wins = (x_SP > 0).astype(float)
    expected = wilson_interval(float(wins.sum()), wins.size)
    assert share_intervals([wins] * 5)[0] == pytest.approx(expected, rel=0.05)


def test_gains_of_equal_0_1_rewards_have_a_width_and_of_equal_numbers_none() -> None:
    equal = [np.zeros((1, 40)), np.zeros((1, 40))]
    assert gain_intervals(equal) == [(0.0, 0.0)] * 2
    for low, high in gain_intervals(equal, binary=True) or []:
        assert low < -0.05 and high > 0.05


def test_fewer_prompts_give_student_and_one_gives_none() -> None:
    x_SP = gains(np.random.default_rng(5), 1, num_prompts=5)[0]
    assert (gain_intervals([x_SP]) or [])[0] == pytest.approx(mean_interval(x_SP[0]))
    assert gain_intervals([np.ones((1, 1))]) is None


# --- the frontier --------------------------------------------------------------------------------


def test_the_frontier_of_each_resample_is_counted() -> None:
    """By hand: the second policy is dominated in one of two resamples, the third always."""
    rewards = np.array([[1.0, 2.0, 0.5], [1.0, 0.9, 0.5]])
    kls = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    assert on_frontier(Resamples(rewards, kls, None)).tolist() == [1.0, 0.5, 0.0]
    assert on_frontier(Resamples(rewards, kls, np.array([1.5, 0.0]))).tolist() == [0.5, 0.5, 0.0]
    both = np.array([True, True, True])
    assert best_share(Resamples(rewards, kls, None), 0, both) == 0.5
    assert best_share(Resamples(rewards, kls, None), 0, np.array([True, False, True])) == 1.0
    assert best_share(Resamples(rewards, kls, np.array([3.0, 0.0])), 0, both) == 0.5


def test_clear_members_are_certain_and_close_ones_are_not() -> None:
    rng, shape = np.random.default_rng(6), (3, 60)
    prompts = rng.normal(0, 1, 60)
    rewards = [prompts + gain + rng.normal(0, 0.3, shape) for gain in (0.0, 2.0, 2.0)]
    kls = [np.full(shape, kl) + rng.normal(0, 0.1, shape) for kl in (1.0, 5.0, 9.0)]
    first, second, third = on_frontier(resample(rewards, kls, prompts - 5.0))
    assert first == second == 1.0 and 0.0 < third < 1.0


def test_resampled_seeds_vary_as_much_as_seeds_do() -> None:
    rng = np.random.default_rng(7)
    rewards = [np.repeat(rng.normal(0, 1, (3, 1)), 50, 1) for _ in range(200)]
    found = resample(rewards, rewards, None).rewards_RK.var(0)
    assert np.mean(found) == pytest.approx(1 / 3, rel=0.2)
    assert np.all(resample([rewards[0][:1]], [rewards[0][:1]], None).rewards_RK.var(0) < 1e-20)


def test_the_winner_is_expected_to_fall_by_what_it_falls() -> None:
    rng, falls, expected = np.random.default_rng(8), list[float](), list[float]()
    for _ in range(60):
        x = rng.normal(0, 1, (12, 40))
        falls.append(float(x.mean(1).max()))
        expected.append(expected_fall(list(x[:, None])))
    assert np.mean(expected) == pytest.approx(np.mean(falls), rel=0.15)
    apart = rng.normal(0, 1, (12, 40)) + 3.0 * np.arange(12)[:, None]
    assert expected_fall(list(apart[:, None])) < 0.1 * np.mean(falls)
