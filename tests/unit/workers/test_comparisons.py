"""comparisons: the mark's error rate where nothing differs, and that it finds what does."""

import numpy as np
import pytest
from scipy import stats

from prefsweep.workers.comparisons import ERROR_RATE, Standing, standings
from prefsweep.workers.statistics import Floats

NUM_PROMPTS = 50
NUM_SWEEPS = 400


def equal_policies(rng: np.random.Generator, kind: str, num: int, seeds: int = 1) -> list[Floats]:
    """Policies with the same true reward, which answer the same prompts."""
    shape, prompts_P = (num, seeds, NUM_PROMPTS), rng.normal(0, 1, NUM_PROMPTS)
    if kind == "skewed":
        noise = rng.exponential(1.0, shape)
    elif kind == "logits":
        share_P = np.clip(0.5 + 0.3 * prompts_P, 0.05, 0.95)
        noise = np.where(rng.random(shape) < share_P, 2.5, -2.5) + rng.normal(0, 0.4, shape)
    elif kind == "unequal spread":
        spread = np.linspace(0.3, 3.0, num)[:, None, None]
        noise = spread * (rng.exponential(1.0, shape) - 1.0)
    else:
        noise = rng.normal(0, 1, shape) + rng.normal(0, 0.3, (num, seeds, 1)) * (seeds > 1)
    return list(prompts_P + noise)


def stand(policies: list[Floats], untrained: int | None = None) -> list[Standing]:
    best = int(np.argmax([x_SP.mean() for x_SP in policies]))
    found = standings(policies, best, untrained)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("kind", "num", "seeds"),
    [
        ("normal", 2, 1),
        ("normal", 10, 1),
        ("skewed", 10, 1),
        ("logits", 10, 1),
        ("unequal spread", 10, 1),
        ("normal", 8, 3),
    ],
)
def test_where_all_are_equal_any_is_marked_in_at_most_one_sweep_of_twenty(
    kind: str, num: int, seeds: int
) -> None:
    rng = np.random.default_rng(1)
    sweeps = [equal_policies(rng, kind, num, seeds) for _ in range(NUM_SWEEPS)]
    wrong = sum(any(s.distinguishable for s in stand(policies)) for policies in sweeps)
    error = 2 * (ERROR_RATE * (1 - ERROR_RATE) / NUM_SWEEPS) ** 0.5
    assert wrong / NUM_SWEEPS <= ERROR_RATE + error


def test_paired_tests_without_correction_would_mark_far_too_many() -> None:
    """What the correction is for."""
    rng, wrong = np.random.default_rng(2), 0
    for _ in range(200):
        x_EP = np.concatenate(equal_policies(rng, "normal", 12))
        best = x_EP[x_EP.mean(1).argmax()]
        wrong += any(stats.ttest_rel(best, x_P).pvalue < 0.05 for x_P in x_EP if x_P is not best)
    assert wrong / 200 > 0.3


def test_two_policies_are_the_paired_t_test() -> None:
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.2, 0.4):
        x_EP = rng.normal(0, 1, NUM_PROMPTS) + rng.normal(0, 1, (2, NUM_PROMPTS))
        x_EP[0] += shift
        best = int(x_EP.mean(1).argmax())
        expected = stats.ttest_rel(x_EP[best], x_EP[1 - best]).pvalue
        assert stand(list(x_EP[:, None]))[1 - best].p_value == pytest.approx(expected, abs=0.02)


def test_many_policies_are_close_to_tukeys_test() -> None:
    """Independent normal policies of equal spread: scipy's studentized range is the reference."""
    x_EP = np.random.default_rng(4).normal(0, 1, (6, 200)) + np.linspace(0, 0.35, 6)[:, None]
    expected = stats.tukey_hsd(*x_EP).pvalue
    best = int(x_EP.mean(1).argmax())
    for index, standing in enumerate(stand(list(x_EP[:, None]))):
        assert standing.p_value == pytest.approx(expected[best, index], abs=0.06)


def test_a_policy_that_is_worse_on_most_prompts_is_told_apart() -> None:
    rng = np.random.default_rng(5)
    policies = equal_policies(rng, "normal", 10)
    policies[4] = policies[4] - 2.0
    policies[7] = policies[7] + 0.5
    found = stand(policies)
    assert found[4].distinguishable
    assert found[4].distance == pytest.approx(policies[7].mean() - policies[4].mean())
    assert not found[7].distinguishable and found[7].p_value == 1.0


def test_pairing_sees_what_the_spread_between_prompts_hides() -> None:
    rng = np.random.default_rng(6)
    prompts_P = rng.normal(0, 10, NUM_PROMPTS)
    policies = [(prompts_P + rng.normal(shift, 0.3, NUM_PROMPTS))[None] for shift in (0.0, 0.5)]
    assert stand(policies)[0].distinguishable


def test_policies_that_answer_alike_are_not_distinguishable() -> None:
    x_SP = np.random.default_rng(7).normal(0, 1, (1, NUM_PROMPTS))
    assert not any(s.distinguishable for s in stand([x_SP, x_SP.copy(), x_SP.copy()]))
    constant = [np.full((1, NUM_PROMPTS), value) for value in (1.0, 2.0, 2.0)]
    assert [s.distinguishable for s in stand(constant)] == [True, False, False]


def test_seeds_that_differ_make_policies_harder_to_tell_apart() -> None:
    rng = np.random.default_rng(8)
    noise = [rng.normal(0, 0.3, (3, NUM_PROMPTS)) for _ in range(2)]
    calm = [noise[0], noise[1] + 0.5]
    moved = [x_SP + np.array([[-0.6], [0.0], [0.6]]) for x_SP in calm]
    assert stand(calm)[0].distinguishable
    assert not stand(moved)[0].distinguishable
    alone = [moved[0].mean(0)[None], moved[1]]
    assert stand(alone)[0].p_value > stand(alone, untrained=0)[0].p_value


def test_a_policy_far_below_is_told_apart_whichever_is_the_untrained_one() -> None:
    """Two-sided: training that hurts is found as surely as training that helps."""
    rng = np.random.default_rng(10)
    trained, start = equal_policies(rng, "normal", 2)
    found = stand([trained - 1.5, start], untrained=1)
    assert found[0].distinguishable and found[0].distance == pytest.approx(1.5, abs=0.5)
    assert stand([trained + 1.5, start], untrained=1)[1].distinguishable


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_seeds_that_vary_unequally_mark_no_more_than_one_sweep_in_twenty(num_seeds: int) -> None:
    """One grid point that moves ten times as far from seed to seed as the others."""
    rng, wrong = np.random.default_rng(11), 0
    stds_E = np.array([1.0, *[0.1] * 7])[:, None, None]
    for _ in range(NUM_SWEEPS // 2):
        seeds = stds_E * rng.normal(0, 1, (8, num_seeds, 1))
        noise = rng.normal(0, 1, (8, num_seeds, 20))
        wrong += any(s.distinguishable for s in stand(list(rng.normal(0, 1, 20) + noise + seeds)))
    assert wrong / (NUM_SWEEPS // 2) <= ERROR_RATE + 0.02


def test_one_prompt_tells_nothing() -> None:
    assert standings([np.ones((1, 1)), np.zeros((1, 1))], 0) is None


def test_the_same_rewards_give_the_same_numbers() -> None:
    policies = equal_policies(np.random.default_rng(9), "skewed", 5)
    assert stand(policies) == stand(policies)
