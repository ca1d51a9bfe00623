"""Reads the status of a sweep from the store, for the live view, `status` and the tracker."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from prefsweep.orchestrator.state.lease import Pulse, alive, read_holder
from prefsweep.orchestrator.state.quarantine import with_recorded_quarantine
from prefsweep.orchestrator.state.sweep import (
    SHARDED,
    UNTRAINED,
    Sweep,
    Trial,
    num_shards,
)
from prefsweep.orchestrator.state.sweep_record import read_state
from prefsweep.orchestrator.state.trial_record import (
    trial_status,
)
from prefsweep.orchestrator.store.store import Manifest, Store
from prefsweep.orchestrator.text import clean
from prefsweep.sweeps.records import (
    DriverStatus,
    StageStatus,
    Status,
    SweepStatus,
    TrialResult,
    TrialStatus,
)


def read_status(sweep: Sweep) -> SweepStatus:
    """Read the current status of a sweep."""
    return StatusReader(sweep).read()


class StatusReader:
    """Reads a sweep's status repeatedly; caches what cannot have changed."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._pulse = Pulse(sweep.store, sweep.spec.name)
        self._trials: dict[str, tuple[object, TrialStatus]] = {}
        """Trial -> the versions of its files when they were read, and the status read."""
        self._stages: dict[str, StageStatus] = {}
        """Finished stages."""
        self._shards: dict[str, Manifest] = {}
        """Finished shards of unfinished stages."""

    def read(self) -> SweepStatus:
        """Read the current status. Raises StoreError or OSError if the store cannot be reached."""
        self._switch_if_quarantined()
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

    def _switch_if_quarantined(self) -> None:
        """Switch to the new artefacts once prompts are quarantined."""
        recorded = with_recorded_quarantine(self._sweep)
        if recorded.inputs != self._sweep.inputs:
            self._sweep = recorded
            self._trials, self._stages, self._shards = {}, {}, {}

    def trials(self, trials: Sequence[Trial]) -> list[TrialStatus]:
        """Read the status of trials; those that ended are only read again if their files change."""
        store, folder = self._sweep.store, self._sweep.store.trial
        names = ("status.json", "metrics.jsonl")
        versions = store.file_versions([folder(t.trial_id, name) for t in trials for name in names])
        found: list[TrialStatus] = []
        for trial, version in zip(
            trials, zip(versions[::2], versions[1::2], strict=True), strict=True
        ):
            before, status = self._trials.get(trial.trial_id, (None, None))
            if status is None or before != version or status.status == Status.RUNNING:
                status = trial_status(self._sweep, trial)
                self._trials[trial.trial_id] = version, status
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
        """Add the rows of a stage's finished shards, rows per second and time left."""
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
    """The driver that holds the sweep's lease, and whether it is alive and responds."""
    holder, is_alive = pulse.look()
    if holder is None:
        return None
    responds = not holder.is_stopped
    return DriverStatus(holder.host, holder.pid, holder.since, is_alive, responds)


def status_document(status: SweepStatus) -> dict[str, Any]:
    """The document that `status --json` prints."""
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
    """Mark the first unfinished stage, and those that run at the same time, as running."""
    beside = ({"policy", "reward", "prompts", "eval_prompts"}, {"completions", "scores"})
    first = next((s.name for s in stages if s.status == Status.PENDING), None)
    together = next((group for group in beside if first in group), {first})
    for index, stage in enumerate(stages):
        if stage.status == Status.PENDING and stage.name in together:
            stages[index] = replace(stage, status=Status.RUNNING)


def _without_driver(trial: TrialStatus) -> TrialStatus:
    """A trial that was running when its driver died counts as interrupted."""
    if trial.status != Status.RUNNING:
        return trial
    return replace(trial, status=Status.INTERRUPTED)


def eta(trials: list[TrialStatus]) -> float | None:
    """Estimated seconds until all trials are done, None if unknown.

    Based on the mean time of finished trials or, if there is none, on the pace of running ones, and
    on the number of trials that run at once.
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


# --- all sweeps of a store -----------------------------------------------------------------------


@dataclass(frozen=True)
class ListedSweep:
    """A sweep in the list of a store's sweeps."""

    sweep: str
    status: str
    """Empty if no driver has recorded one."""
    updated: float | None
    """Seconds since 1970."""
    running: bool


def list_sweeps(storage: str) -> list[ListedSweep]:
    """All sweeps of a store, by name. Reads two small files per sweep."""
    store = Store(storage)
    holders = {name: holder for name in store.sweeps() if (holder := read_holder(store, name))}
    running = alive(store, holders)
    return [_listed(store, name, name in running) for name in store.sweeps()]


def _listed(store: Store, name: str, is_running: bool) -> ListedSweep:
    state = read_state(store, name)
    status = state.status
    if status == Status.RUNNING and not is_running:  # its driver has died
        status = Status.INTERRUPTED
    return ListedSweep(name, str(status), state.updated or None, is_running)


# --- one line about a trial ----------------------------------------------------------------------

SHOWN_METRICS = ("reward_mean", "kl", "entropy", "win_rate")
"""Metrics in the log line of a trial that has succeeded."""


def describe(trial: TrialStatus | TrialResult) -> str:
    """sigmoid-beta0.1 succeeded: reward_mean 1.234 kl 0.567; or its failure message."""
    name = f"{clean(trial.name)} {trial.status}"
    if trial.failure is not None:
        return f"{name}: {clean(trial.failure.message)}"
    values = {key: trial.metrics.get(key) for key in SHOWN_METRICS}
    numbers = " ".join(f"{key} {value:.3f}" for key, value in values.items() if value is not None)
    return f"{name}: {numbers}" if trial.status == Status.SUCCEEDED and numbers else name
