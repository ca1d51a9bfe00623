"""Determines which policies are not significantly different from the best, from rewards by prompt.

All pairs of policies are compared simultaneously by their paired differences, so that the selection
of the best by its result does not bias the test. The familywise error rate is 5%: in at most one of
twenty sweeps, any policy that is truly as good as the best one is marked as worse.

Method: single-step max-t over all pairs (Tukey's all-pairs comparison, in the form of Hothorn,
Bretz and Westfall 2008). The joint distribution of the paired differences is simulated by a
Gaussian multiplier bootstrap over prompts. With several seeds a policy is a setting, whose variance
over seeds is its own and not pooled with that of others (Welch 1947, degrees of freedom by
Satterthwaite 1946); with one seed the comparison is about these weights, over prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from prefsweep.workers.statistics import Floats, SeedSpread, seed_spreads

ERROR_RATE = 0.05
"""Probability that any policy is wrongly marked as worse than the best."""
METHOD = "max-t over all pairs of policies, the untrained one included, familywise error rate 5%"
NUM_DRAWS = 2000
MANY_POLICIES = 250
"""With more policies, half as many draws are made, because the work grows with their square."""
MOST_OF_TWO = 4.0
"""Maximum degrees of freedom if a policy has two seeds, whose variance is too often small by
chance; measured to keep the error rate (tests/benchmarks/statistics.py)."""
_TINY = 1e-12
"""Share of two policies' variances below which the variance of their difference is rounding."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The comparison of one policy with the best."""

    distance: float
    """Mean reward of the best minus this one's, over the same prompts."""
    p_value: float
    """p-value adjusted for all comparisons; 1 for the best itself."""

    @property
    def distinguishable(self) -> bool:
        """Whether it is significantly worse than the best, at the familywise error rate."""
        return self.p_value < ERROR_RATE


def standings(
    policies: Sequence[Floats], best: int, untrained: int | None = None
) -> list[Standing] | None:
    """Compare every policy with `policies[best]`; None for fewer than two prompts.

    A policy is an array (seeds, prompts), with the same prompts in the same order for all.
    `untrained` is the policy that was not trained and so has no seeds.
    """
    x_EP = np.stack([x_SP.mean(0) for x_SP in policies])
    num_prompts = x_EP.shape[1]
    if num_prompts < 2:
        return None
    spreads = seed_spreads(policies, untrained)
    seeds_E, off_E = np.array([(s.variance, s.off_prompts) for s in spreads]).T
    deviations_EP = x_EP - x_EP.mean(1, keepdims=True)
    prompts_EE = _difference_variances(deviations_EP)
    prompts_EE = np.maximum(prompts_EE - off_E[:, None] - off_E, 0.0)
    maxima = np.sort(_maxima(deviations_EP, prompts_EE, seeds_E))
    distance_E = x_EP[best].mean() - x_EP.mean(1)
    degrees_E = welch_degrees(
        prompts_EE[best], num_prompts, [[spread, spreads[best]] for spread in spreads]
    )
    z_E = _normal_scores(distance_E, prompts_EE[best] + seeds_E + seeds_E[best], degrees_E)
    reached_E = len(maxima) - np.searchsorted(maxima, z_E)
    p_E = (1 + reached_E) / (1 + len(maxima))
    p_E[best] = 1.0
    return [Standing(float(d), float(p)) for d, p in zip(distance_E, p_E, strict=True)]


def _difference_variances(deviations_EP: Floats) -> Floats:
    """Variance over prompts of the mean paired difference of every two policies."""
    num_prompts = deviations_EP.shape[1]
    cov_EE = deviations_EP @ deviations_EP.T / (num_prompts - 1) / num_prompts
    own_E = cov_EE.diagonal()
    var_EE = own_E[:, None] + own_E[None, :] - 2 * cov_EE
    return np.where(var_EE > _TINY * (own_E[:, None] + own_E[None, :]), var_EE, 0.0)


def _maxima(deviations_EP: Floats, prompts_EE: Floats, seeds_E: Floats) -> Floats:
    """The largest standardized difference of any two policies in each draw, if all were equal."""
    num = len(deviations_EP)
    num_draws = NUM_DRAWS if num <= MANY_POLICIES else NUM_DRAWS // 2
    errors_RE = simulated_errors(deviations_EP, seeds_E, num_draws)
    errors_ER = np.ascontiguousarray(errors_RE.T, np.float32)
    largest_R = np.zeros(num_draws, np.float32)
    for one in range(num - 1):
        others = slice(one + 1, None)
        variances = prompts_EE[one, others] + seeds_E[one] + seeds_E[others]
        differences_ER = np.abs(errors_ER[others] - errors_ER[one])
        differences_ER *= _inverse_roots(variances).astype(np.float32)[:, None]
        np.maximum(largest_R, differences_ER.max(0), out=largest_R)
    return largest_R.astype(np.float64)


def simulated_errors(deviations_EP: Floats, seeds_E: Floats, num_draws: int) -> Floats:
    """Draws (num_draws, policies) of the errors of the means, as if these were jointly normal.

    They are correlated over prompts as the deviations are, and independent over seeds.
    """
    num, num_prompts = deviations_EP.shape
    rng = np.random.default_rng(0)
    errors_RE = rng.standard_normal((num_draws, num_prompts)) @ deviations_EP.T
    errors_RE /= np.sqrt(num_prompts * max(num_prompts - 1, 1))
    return errors_RE + rng.standard_normal((num_draws, num)) * np.sqrt(seeds_E)


def _inverse_roots(variances: Floats) -> Floats:
    """1 / sqrt(variance), or 0 for two policies with equal rewards."""
    return np.divide(1.0, np.sqrt(variances), out=np.zeros_like(variances), where=variances > 0)


def _normal_scores(distance_E: Floats, variance_E: Floats, degrees_E: Floats) -> Floats:
    """The studentized distances, transformed from their t distributions to the normal one.

    A distance without variance is infinite.
    """
    t_E = distance_E * _inverse_roots(variance_E)
    z_E = stats.norm.isf(stats.t.sf(t_E, degrees_E))
    return np.where((variance_E == 0) & (distance_E > 0), np.inf, z_E)


def welch_degrees(
    prompts_E: Floats, num_prompts: int, seeds: Sequence[Sequence[SeedSpread]]
) -> Floats:
    """Degrees of freedom of the sum of variances over prompts and over the seeds of some policies.

    Satterthwaite's formula, made conservative: the noise of completions, which is in both
    variances, is subtracted from the sum, and MOST_OF_TWO is the maximum if a policy has two seeds.
    """
    squares = [sum(s.variance**2 / s.degrees for s in spreads) for spreads in seeds]
    sums = [sum(s.variance - s.off_seeds for s in spreads) for spreads in seeds]
    weighted_E = prompts_E**2 / max(num_prompts - 1, 1) + np.array(squares)
    degrees_E = np.divide(
        (prompts_E + np.array(sums)) ** 2,
        weighted_E,
        out=np.full_like(prompts_E, np.inf),
        where=weighted_E > 0,
    )
    most_E = [MOST_OF_TWO if any(s.degrees == 1 for s in each) else np.inf for each in seeds]
    return np.clip(degrees_E, 1.0, np.minimum(most_E, max(num_prompts - 1, 1)))
