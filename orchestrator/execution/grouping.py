"""Makes groups of trials: first one group per worker that can run at once, then larger groups."""

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
    """The sizes of groups."""

    largest: int = 1
    """Maximum number of trials per group."""
    places: int = 1
    """Number of groups that run at once; there are at least as many groups, if possible."""


ALONE = Grouping()
"""Every trial is a separate group."""


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
    """The trials in groups, in the order of their first trials.

    Trials can share a group if they can be trained together from their checkpoints. A trial that
    only has to be evaluated, or was started alone, is alone.
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
    """A key that is equal for trials that can share a group (None: with no other trial), and the
    maximum size of the group."""
    state = TrialRecord(sweep, trial)
    if state.largest_group == 1 or has_weights(sweep.store, trial):
        return None, 1
    step = newest_step(sweep, trial)
    if step and not begun_in_group(sweep, trial, step):
        return None, 1
    return (fusing_key(trial.spec), state.halvings, step), state.largest_group


def _even(items: Sequence[int], num: int) -> list[Sequence[int]]:
    """Split into `num` parts whose sizes differ by at most one, larger ones first."""
    size, larger = divmod(len(items), num)
    bounds = [i * size + min(i, larger) for i in range(num + 1)]
    return [items[begin:end] for begin, end in pairwise(bounds)]
