"""Which trials are run as one: a group for every place first, then groups as large as asked."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from prefsweep.orchestrator.execution.sizing import group_size
from prefsweep.orchestrator.state.sweep import Sweep, Trial
from prefsweep.orchestrator.state.trial_record import TrialRecord, has_weights
from prefsweep.orchestrator.tasks.checkpoints import begun_in_group, newest_step
from prefsweep.orchestrator.tasks.probe import ProbeGroups
from prefsweep.sweeps.fusing import cut, fusing_key, why_not_fused
from prefsweep.sweeps.grid import TrialSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Grouping:
    """How large groups are."""

    largest: int = 1
    """Most trials in one."""
    places: int = 1
    """Groups that run at once; each place gets one before any gets larger."""


ALONE = Grouping()
"""Every trial is a group of its own."""


def largest_set(sweep: Sweep, trials: Sequence[Trial]) -> tuple[TrialSpec, ...]:
    """The most trials to train that could be one group; empty where none can."""
    if why_not_fused(sweep.spec.training, sweep.spec.policy.dtype) is not None:
        return ()
    alike: dict[object, list[TrialSpec]] = {}
    for trial in trials:
        if not has_weights(sweep.store, trial):
            alike.setdefault(fusing_key(trial.spec), []).append(trial.spec)
    return tuple(max(alike.values(), key=len, default=()))


def size_that_pays(probe: ProbeGroups, gpus: float) -> int:
    """The size of group that trains fastest by a probe that has run, in a share of a GPU."""
    found, free = probe.found()
    size = group_size(found, free * min(1.0, gpus))
    paces = ", ".join(f"{step.size}: {step.pace:.3g}" for step in found)
    log.info("training.fuse: groups of up to %d (trial-steps a second by size: %s)", size, paces)
    return size


def make_groups(sweep: Sweep, trials: Sequence[Trial], grouping: Grouping) -> list[list[Trial]]:
    """The trials in groups, in the order of their first ones.

    Trials share a group if they can be trained as one from where they stand; what is only to be
    evaluated, or was begun alone, is alone.
    """
    largest, places = grouping.largest, grouping.places
    if largest == 1:
        return [[trial] for trial in trials]
    alike: dict[object, list[int]] = {}
    limits: dict[int, int] = {}
    for index, trial in enumerate(trials):
        key, limits[index] = _shared(sweep, trial)
        alike.setdefault(index if key is None else key, []).append(index)
    num_fusable = sum(len(found) for found in alike.values() if len(found) > 1)
    groups: list[list[int]] = []
    for found in alike.values():
        own_places = max(1, places * len(found) // max(1, num_fusable))
        num = max(-(-len(found) // largest), min(len(found), own_places))
        for part in _even(found, num):
            groups += cut(part, [limits[index] for index in part])
    return [[trials[index] for index in group] for group in sorted(groups)]


def _shared(sweep: Sweep, trial: Trial) -> tuple[object, int]:
    """Equal for trials that can share a group (None: with no other), and how many may at most."""
    state = TrialRecord(sweep, trial)
    if state.largest_group == 1 or has_weights(sweep.store, trial):
        return None, 1
    step = newest_step(sweep, trial)
    if step and not begun_in_group(sweep, trial, step):
        return None, 1
    return (fusing_key(trial.spec), state.halvings, step), state.largest_group


def _even(items: Sequence[int], num: int) -> list[Sequence[int]]:
    """In `num` parts whose sizes differ by one at most, the larger ones first."""
    size, larger = divmod(len(items), num)
    bounds = [i * size + min(i, larger) for i in range(num + 1)]
    return [items[begin:end] for begin, end in pairwise(bounds)]
