"""How a sweep stands, read from the store alone: by the live view, `status`, and the pipeline."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from prefsweep.orchestrator.state.lease import Pulse
from prefsweep.orchestrator.state.quarantine import with_recorded_quarantine
from prefsweep.orchestrator.state.sweep import (
    SHARDED,
    UNTRAINED,
    Sweep,
    Trial,
    num_shards,
)
from prefsweep.orchestrator.state.trial_record import (
    trial_status,
)
from prefsweep.orchestrator.store.store import Manifest
from prefsweep.sweeps.records import (
    DriverStatus,
    StageStatus,
    Status,
    SweepStatus,
    TrialStatus,
)


def read_status(sweep: Sweep) -> SweepStatus:
    """Stages and trials as the store shows them now."""
    return StatusReader(sweep).read()


class StatusReader:
    """Reads a sweep's status again and again, and from the store only what may have changed."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._pulse = Pulse(sweep.store, sweep.spec.name)
        self._trials: dict[str, tuple[object, TrialStatus]] = {}
        """Trial -> the stamps of its files when it was read, and what was read."""
        self._stages: dict[str, StageStatus] = {}
        """Finished stages."""
        self._shards: dict[str, Manifest] = {}
        """Finished shards of stages that are not."""

    def read(self) -> SweepStatus:
        """Stages and trials as they are now. Raises StoreError or OSError if the store is away."""
        self._follow()
        sweep, driver, elapsed = self._sweep, driver_status(self._pulse), None
        stages = [self._stage(name, driver) for name in (*sweep.stages, UNTRAINED)]
        trials = self.trials(sweep.trials)
        if driver is not None and driver.alive:
            _mark_running(stages)
            elapsed = max(0.0, time.time() - driver.since)  # its clock may be ahead
        elif driver is not None:
            trials = [_without_driver(trial) for trial in trials]
        return SweepStatus(
            sweep.spec.name,
            stages,
            trials,
            elapsed,
            eta(trials),
            driver,
            sweep.inputs.quarantined,
            sweep.storage,
        )

    def _follow(self) -> None:
        """Look at other artefacts once prompts were quarantined."""
        recorded = with_recorded_quarantine(self._sweep)
        if recorded.inputs != self._sweep.inputs:
            self._sweep = recorded
            self._trials, self._stages, self._shards = {}, {}, {}

    def trials(self, trials: Sequence[Trial]) -> list[TrialStatus]:
        """Where these trials stand; what has ended and has not been touched since is not read."""
        store, folder = self._sweep.store, self._sweep.store.trial
        names = ("status.json", "metrics.jsonl")
        stamps = store.stamps([folder(t.trial_id, name) for t in trials for name in names])
        found: list[TrialStatus] = []
        for trial, stamp in zip(trials, zip(stamps[::2], stamps[1::2], strict=True), strict=True):
            before, status = self._trials.get(trial.trial_id, (None, None))
            if status is None or before != stamp or status.status == Status.RUNNING:
                status = trial_status(self._sweep, trial)
                self._trials[trial.trial_id] = stamp, status
            found.append(status)
        return found

    def _stage(self, name: str, driver: DriverStatus | None) -> StageStatus:
        if name not in self._stages:
            stage = _untrained(self._sweep) if name == UNTRAINED else _stage(self._sweep, name)
            if stage.status != Status.SUCCEEDED:
                return self._with_rate(stage, driver)
            self._stages[name] = stage
        return self._stages[name]

    def _with_rate(self, stage: StageStatus, driver: DriverStatus | None) -> StageStatus:
        """The stage with the rows of its finished shards, and how fast they come."""
        if not stage.num_done:
            return stage
        shards = self._manifests(stage)
        rows = sum(shard.rows for shard in shards)
        if driver is None or not driver.alive or not rows:
            return replace(stage, rows=rows)
        made = [(shard, shard.made_at) for shard in shards]
        new = [(shard, at) for shard, at in made if at >= driver.since]
        took_s = time.time() - min((at - shard.seconds for shard, at in new), default=math.inf)
        num_new = sum(shard.rows for shard, _ in new)
        if took_s <= 0 or not num_new:
            return replace(stage, rows=rows)
        rate = num_new / took_s
        left = None if stage.num_total is None else stage.num_total - stage.num_done
        eta_s = None if left is None else left * rows / len(shards) / rate
        return replace(stage, rows=rows, rows_per_s=rate, eta_s=eta_s)

    def _manifests(self, stage: StageStatus) -> list[Manifest]:
        """The manifests of a stage's finished shards, each read once."""
        store, path = self._sweep.store, self._sweep.path(stage.name)
        names = [name for name in store.names(path) if name.endswith(".json")]
        shards = [f"{path}/{name.removesuffix('.json')}" for name in names]
        for shard in shards:
            if shard not in self._shards and (manifest := store.shard_manifest(shard)) is not None:
                self._shards[shard] = manifest
        return [self._shards[shard] for shard in shards if shard in self._shards]


def driver_status(pulse: Pulse) -> DriverStatus | None:
    """Who runs the sweep, and whether that process is alive and responds."""
    holder, is_alive = pulse.look()
    if holder is None:
        return None
    responds = not holder.is_stopped
    return DriverStatus(holder.host, holder.pid, holder.since, is_alive, responds)


def status_document(status: SweepStatus) -> dict[str, Any]:
    """What `status --json` prints."""
    document = asdict(status)
    keys = ("sweep", "stages", "trials", "elapsed_s", "eta_s", "driver", "quarantined")
    return {key: document[key] for key in keys}


def _stage(sweep: Sweep, name: str) -> StageStatus:
    path = sweep.path(name)
    manifest = sweep.store.manifest(path)
    display = sweep.store.display(path)
    if manifest is not None:
        num = len(manifest.files) if name in SHARDED else 1
        return StageStatus(
            name, Status.SUCCEEDED, display, manifest.rows, manifest.seconds, num, num
        )
    if name not in SHARDED or name == sweep.entered:
        return StageStatus(name, Status.PENDING, display, num_total=1)
    num_done = sum(item.endswith(".json") for item in sweep.store.names(path))
    return StageStatus(
        name, Status.PENDING, display, num_done=num_done, num_total=num_shards(sweep, name)
    )


def _untrained(sweep: Sweep) -> StageStatus:
    path = sweep.evaluation_path(UNTRAINED)
    manifest, display = sweep.store.manifest(path), sweep.store.display(path)
    if manifest is None:
        return StageStatus(UNTRAINED, Status.PENDING, display, num_total=1)
    return StageStatus(UNTRAINED, Status.SUCCEEDED, display, manifest.rows, manifest.seconds, 1, 1)


def _mark_running(stages: list[StageStatus]) -> None:
    """The first unfinished stage of a running sweep is running, and all that run beside it."""
    beside = ({"policy", "reward", "prompts", "eval_prompts"}, {"completions", "scores"})
    first = next((s.name for s in stages if s.status == Status.PENDING), None)
    together = next((group for group in beside if first in group), {first})
    for index, stage in enumerate(stages):
        if stage.status == Status.PENDING and stage.name in together:
            stages[index] = replace(stage, status=Status.RUNNING)


def _without_driver(trial: TrialStatus) -> TrialStatus:
    """A trial that was running when its driver died."""
    if trial.status != Status.RUNNING:
        return trial
    return replace(trial, status=Status.INTERRUPTED)


def eta(trials: list[TrialStatus]) -> float | None:
    """Seconds until the trials are done, by what finished ones took and how many run at once.

    Before any has finished, by what the running ones will take at their pace.
    """
    running = [t for t in trials if t.status == Status.RUNNING]
    paces = [t.step_seconds * t.max_steps for t in running if t.step_seconds and t.max_steps]
    took = [t.seconds for t in trials if t.status == Status.SUCCEEDED and t.seconds is not None]
    if not running or not (took or paces):
        return None
    each = sum(took or paces) / len(took or paces)
    left = sum(1 - min(1.0, t.step / t.max_steps) if t.max_steps else 1.0 for t in running)
    left += sum(t.status == Status.PENDING for t in trials)
    return each * left / len(running)
