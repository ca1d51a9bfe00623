"""Describes the changes between two statuses of a sweep as log lines."""

from collections import Counter
from collections.abc import Iterator

from prefsweep.orchestrator.results.status import describe
from prefsweep.orchestrator.text import clean, short_duration
from prefsweep.sweeps.records import StageStatus, Status, SweepStatus


def changes(before: SweepStatus | None, now: SweepStatus) -> Iterator[str]:
    """One line per change, without control characters; a summary if there is no status `before`."""
    if before is None:
        yield summary(now)
    yield from _driver(before, now)
    stages = {} if before is None else {stage.name: stage for stage in before.stages}
    for stage in now.stages:
        if before is not None and _differ(stages.get(stage.name), stage):
            yield _stage(stage)
    trials = {} if before is None else {trial.trial_id: trial for trial in before.trials}
    ended = sum(trial.status in _ENDED for trial in now.trials)
    for trial in now.trials:
        old = trials.get(trial.trial_id)
        if before is not None and (old is None or old.status != trial.status):
            yield f"trial {describe(trial)} ({ended} of {len(now.trials)} ended)"


_ENDED = (Status.SUCCEEDED, Status.FAILED)


def summary(status: SweepStatus) -> str:
    """quickstart: 8 of 9 stages done; 3 succeeded, 1 running, 4 pending."""
    done = sum(stage.status == Status.SUCCEEDED for stage in status.stages)
    counts = Counter(trial.status for trial in status.trials)
    trials = ", ".join(f"{num} {kind}" for kind, num in counts.items())
    stages = f"{done} of {len(status.stages)} stages done"
    return f"{clean(status.sweep)}: {stages}" + (f"; trials: {trials}" if trials else "")


def _driver(before: SweepStatus | None, now: SweepStatus) -> Iterator[str]:
    old = None if before is None else before.driver
    if now.driver == old:
        return
    if now.driver is None:
        yield "the sweep is no longer running"
        return
    who = f"pid {now.driver.pid} on {clean(now.driver.host)}"
    if not now.driver.responding:
        yield f"its driver, {who}, does not respond: its process is stopped"
    else:
        yield f"run by {who}" if now.driver.alive else f"its driver, {who}, has died"


def _differ(old: StageStatus | None, new: StageStatus) -> bool:
    return old is None or (old.status, old.num_done) != (new.status, new.num_done)


def _stage(stage: StageStatus) -> str:
    total = "" if stage.num_total is None else f"/{stage.num_total}"
    parts = [f"{stage.name}: {stage.status} {stage.num_done}{total}"]
    if stage.rows is not None:
        parts.append(f"{stage.rows} rows")
    if stage.rows_per_s is not None:
        parts.append(f"{stage.rows_per_s:.3g} rows/s")
    if stage.eta_s is not None:
        parts.append(f"{short_duration(stage.eta_s)} to go")
    return ", ".join(parts)
