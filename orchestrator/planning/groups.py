"""Describes which trials would be trained as groups, what that saves, and why others are not."""

from collections.abc import Iterator, Sequence

from prefsweep.orchestrator.execution.grouping import Grouping, make_groups
from prefsweep.orchestrator.execution.sizing import group_size, probed_groups
from prefsweep.orchestrator.state.sweep import Sweep, Trial
from prefsweep.orchestrator.state.trial_record import has_weights
from prefsweep.sweeps.fusing import why_not_fused


def group_lines(sweep: Sweep, unfinished: Sequence[Trial]) -> Iterator[str]:
    """One line for `plan` and `doctor`; none if groups were not requested, or have no effect."""
    spec = sweep.spec
    fuse = spec.training.fuse
    if fuse == "off":
        return
    trials = [trial for trial in unfinished if not has_weights(sweep.store, trial)]
    if len(trials) < 2:
        return
    why_not = why_not_fused(spec.training, spec.policy.dtype)
    if why_not is not None:
        yield f"groups: none, each trial is trained alone, because {why_not}"
    elif isinstance(fuse, int):
        groups = _described(sweep, trials, fuse)
        yield f"groups: {groups} (training.fuse={fuse}); smaller ones if more can run at once"
    else:
        yield from _probed_lines(sweep, trials)


def _probed_lines(sweep: Sweep, trials: Sequence[Trial]) -> Iterator[str]:
    probed = probed_groups(sweep)
    if not probed:
        yield (
            "groups: on the CPU, each trial is trained alone; on a GPU, a few steps are measured "
            f"to find how many of the {len(trials)} to train as one (training.fuse: auto)"
        )
    for kind, (steps, free) in probed.items():
        size = group_size(steps, free)
        pace = {step.size: step.pace for step in steps}
        if size == 1:
            yield (
                f"groups: none, each trial is trained alone: on {kind}, as probed, a group of them "
                "does not fit or is not faster, because one trial's batch fills the GPU"
            )
        else:
            yield (
                f"groups: on {kind}, as probed, {_described(sweep, trials, size)}: "
                f"{pace[size] / pace[1]:.2g}x the steps a second of one trial at a time; smaller "
                "ones on several GPUs"
            )


def _described(sweep: Sweep, trials: Sequence[Trial], largest: int) -> str:
    groups = make_groups(sweep, trials, Grouping(largest))
    sizes = sorted({len(group) for group in groups})
    of = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return (
        f"{len(trials)} trials in {len(groups)} groups of {of}, each of which has the policy in "
        "memory once and runs it once per step"
    )
