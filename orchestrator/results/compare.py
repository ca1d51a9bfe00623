"""Compares two sweeps of one or two stores: their settings, and the grid points that match.

Grid points match if their parameters are equal; seeds are pooled. Rewards are compared prompt by
prompt, over the held-out prompts of both sweeps, if the same reward model scored both. Otherwise a
note gives the reason and there is no difference. Reads stores, writes nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from prefsweep.orchestrator.results.analysis import (
    Pooled,
    Variant,
    interval,
    metric,
    pool,
)
from prefsweep.orchestrator.results.analysis import compare as group_results
from prefsweep.orchestrator.results.by_prompt import table
from prefsweep.orchestrator.results.results import read_results
from prefsweep.orchestrator.state.sweep import UNTRAINED, Sweep
from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.records import Metrics, TrialResult
from prefsweep.workers.statistics import (
    Interval,
    Kind,
    are_binary,
    over_seeds,
    prompt_rewards,
    seed_spread,
)

STAGES = (
    *("policy", "reward", "prompts", "completions", "scores"),
    *("pairs", "reference", "eval_prompts"),
)
METRICS = ("win_rate", "kl", "entropy", "accuracy_test")
"""Metrics shown for both sweeps, in addition to the reward."""
_NOT_RESULTS = ("name", "resources", "tracking", "grid", "seeds")
"""Sections of the spec that are not listed as differences."""

_NOT_SCORES = {"batch_size", "train", "trust_remote_code"}
"""Fields of a reward that do not change its scores (weights are compared separately)."""


@dataclass(frozen=True, slots=True)
class Side:
    """One sweep's numbers for a grid point or for the untrained policy."""

    name: str
    num_seeds: int
    reward: float | None
    reward_interval: Interval | None
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Match:
    """A grid point that is finished in both sweeps."""

    name: str
    one: Side
    other: Side
    same_trials: bool
    """Whether both sweeps refer to the same trials, with the same weights."""
    difference: float | None = None
    """Reward of `other` minus reward of `one`, paired by prompt."""
    difference_interval: Interval | None = None
    num_prompts: int = 0


@dataclass(frozen=True, slots=True)
class SweepComparison:
    """Two sweeps compared."""

    one: str
    other: str
    notes: list[str]
    """Remarks on how far the differences can be trusted."""
    stages: dict[str, bool]
    """Stage -> whether both sweeps have the same artefact."""
    spec: dict[str, tuple[object, object]]
    """Dotted field name -> its two values, for fields that differ."""
    matches: list[Match]
    """The untrained policies, then the best of each sweep, then matching grid points."""
    only_one: list[str] = field(default_factory=list[str])
    only_other: list[str] = field(default_factory=list[str])


def compare_sweeps(one: Sweep, other: Sweep) -> SweepComparison:
    """Compare two sweeps by their current results."""
    results = [group_results(read_results(sweep)) for sweep in (one, other)]
    pools = [pool(comparison) for comparison in results]
    why_not = list(_unlike_rewards(one, other))
    paired = not why_not
    matches = list(_untrained([comparison.untrained for comparison in results], paired))
    matches += _best(pools, paired)
    points = [{_key(v): v for v in found.variants if v.finished} for found in pools]
    shared = [key for key in points[0] if key in points[1]]
    matches += [
        _match(points[0][key].name, points[0][key], points[1][key], paired) for key in shared
    ]
    return SweepComparison(
        one=one.spec.name,
        other=other.spec.name,
        notes=[*why_not, *_caveats(one, other), *_about_pairs(matches, paired)],
        stages={name: _same(one, other, name) for name in STAGES},
        spec=dict(_spec_differences(one, other)),
        matches=matches,
        only_one=[v.name for key, v in points[0].items() if key not in points[1]],
        only_other=[v.name for key, v in points[1].items() if key not in points[0]],
    )


# --- what may be compared ------------------------------------------------------------------------


def _unlike_rewards(one: Sweep, other: Sweep) -> Iterator[str]:
    """The reasons why rewards are not compared, if any."""
    rewards = [sweep.spec.reward for sweep in (one, other)]
    if None in rewards:
        yield "rewards are not compared: at least one sweep has no reward"
        return
    fields = [r.model_dump(exclude=_NOT_SCORES) for r in rewards if r is not None]
    unlike = sorted(k for k in {**fields[0], **fields[1]} if fields[0].get(k) != fields[1].get(k))
    unlike = ["type"] if "type" in unlike else unlike
    if unlike:
        listed = ", ".join(f"{k}: {fields[0].get(k)} and {fields[1].get(k)}" for k in unlike)
        yield f"rewards are not compared: the reward models differ ({listed})"
    elif one.fingerprints.reward != other.fingerprints.reward:
        yield "rewards are not compared: the reward models have different weights"


def _caveats(one: Sweep, other: Sweep) -> Iterator[str]:
    """Differences in settings that affect the rewards, besides training."""
    if not _same(one, other, "policy"):
        yield "the policies before training differ: KL and win rate have different references"
    evaluations = [
        sweep.spec.evaluation.model_dump(exclude={"eval_steps", "max_prompts", "confirm_best"})
        for sweep in (one, other)
    ]
    unlike = [name for name in evaluations[0] if evaluations[0][name] != evaluations[1][name]]
    if unlike:
        listed = ", ".join(f"{k}: {evaluations[0][k]} and {evaluations[1][k]}" for k in unlike)
        yield f"evaluation settings differ ({listed}); this alone changes the rewards"


def _about_pairs(matches: Sequence[Match], paired: bool) -> Iterator[str]:
    sizes = [match.num_prompts for match in matches if match.difference is not None]
    if sizes:
        num = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
        yield (
            f"differences are paired over {num} held-out prompts; 95% intervals are not adjusted "
            "for multiple comparisons"
        )
    elif paired and matches:
        yield "the sweeps share no held-out prompt, so there are no paired differences"


def _same(one: Sweep, other: Sweep, stage: str) -> bool:
    return getattr(one.fingerprints, stage) == getattr(other.fingerprints, stage)


def _spec_differences(one: Sweep, other: Sweep) -> Iterator[tuple[str, tuple[object, object]]]:
    ours, theirs = (
        dict(leaves(sweep.spec.model_dump(mode="json", exclude=set(_NOT_RESULTS))))
        for sweep in (one, other)
    )
    for key in dict.fromkeys((*ours, *theirs)):
        if ours.get(key) != theirs.get(key):
            yield key, (ours.get(key), theirs.get(key))


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Flatten nested mappings to (dotted name, value); lists count as values."""
    if isinstance(value, Mapping) and value:
        for name, inner in cast("Mapping[str, object]", value).items():
            yield from leaves(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, value


# --- matches -------------------------------------------------------------------------------------


def _key(variant: Variant) -> TrialSpec:
    trial = variant.members[0].trial
    assert trial is not None
    return trial.model_copy(update={"seed": 0})


def _untrained(policies: Sequence[TrialResult | None], paired: bool) -> Iterator[Match]:
    one, other = policies
    if one is None or other is None:
        return
    sides = (_untrained_side(one), _untrained_side(other))
    same = one.samples == other.samples
    yield Match(UNTRAINED, *sides, same, *_difference([one], [other], paired))


def _untrained_side(policy: TrialResult) -> Side:
    reward = metric(policy, "reward_mean")
    return Side(UNTRAINED, 1, reward, interval(policy), _metrics([policy]))


def _best(pools: Sequence[Pooled], paired: bool) -> Iterator[Match]:
    """The best of each sweep, if they are different grid points."""
    best = [found.best for found in pools]
    if best[0] is not None and best[1] is not None and _key(best[0]) != _key(best[1]):
        yield _match("best of each", best[0], best[1], paired)


def _match(name: str, one: Variant, other: Variant, paired: bool) -> Match:
    same = {r.trial_id for r in one.finished} == {r.trial_id for r in other.finished}
    sides = (_side(one), _side(other))
    return Match(name, *sides, same, *_difference(one.finished, other.finished, paired))


def _side(variant: Variant) -> Side:
    metrics = _metrics(variant.finished)
    return Side(variant.name, variant.num_seeds, variant.reward, variant.reward_interval, metrics)


def _metrics(results: Sequence[TrialResult]) -> Metrics:
    """Means over seeds."""
    means: Metrics = {}
    for name in METRICS:
        values = [value for r in results if (value := metric(r, name)) is not None]
        means[name] = float(np.mean(values)) if values else None
    return means


def _difference(
    one: Sequence[TrialResult], other: Sequence[TrialResult], paired: bool
) -> tuple[float | None, Interval | None, int]:
    """Mean paired reward difference, its 95% interval over prompts and seeds, number of prompts."""
    ours, theirs = ([prompt_rewards(r.samples) for r in side] for side in (one, other))
    every = [*ours, *theirs]
    prompts = [p for p in every[0] if all(p in rewards for rewards in every)]
    if not paired or not prompts:
        return None, None, 0
    sides = [table(side, prompts) for side in (ours, theirs)]
    gains = sides[1].mean(0) - sides[0].mean(0)
    spreads = [seed_spread(side) for side in sides]
    binary = are_binary(sample.reward for r in (*one, *other) for sample in r.samples)
    kind: Kind = "difference" if binary else "number"
    return float(gains.mean()), over_seeds(gains, spreads, kind), len(prompts)
