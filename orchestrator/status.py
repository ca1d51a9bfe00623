"""How a sweep stands, read from the store alone: by the live view, `status`, and the pipeline."""

import time
from dataclasses import asdict, replace
from typing import Any

from prefsweep.orchestrator.lease import read_holder
from prefsweep.orchestrator.stages import REFERENCE_SHARD_PROMPTS, Generate, Reference, Score
from prefsweep.orchestrator.store import Store, absolute
from prefsweep.orchestrator.sweep import UNTRAINED, Sweep, Trial
from prefsweep.orchestrator.trials import parse_metrics
from prefsweep.sweeps.errors import UsageError
from prefsweep.sweeps.identity import Inputs
from prefsweep.sweeps.load import validate_spec
from prefsweep.sweeps.records import (
    DriverStatus,
    Failure,
    Metrics,
    StageStatus,
    Status,
    SweepStatus,
    TrialStatus,
)

SHARDED = {"completions": Generate, "scores": Score, "reference": Reference}


def open_sweep(name: str, storage: str) -> Sweep:
    """A sweep that was run before, from the store. Raises UsageError."""
    store = Store(storage)
    path = store.sweep(name, "spec.json")
    document = store.read_json(path)
    where = store.display(path)
    if document is None and store.read(path) is not None:
        raise UsageError(
            f"{where} is damaged; run the sweep's own spec again, which writes it anew"
        )
    if document is None:
        known = ", ".join(store.names("sweeps")) or "none"
        raise UsageError(
            f"there is no sweep {name!r} in --storage {storage} (there are: {known}); "
            "start it with `prefsweep run`, or name the storage it is in"
        )
    try:
        inputs = Inputs(**document["inputs"])
        return Sweep(validate_spec(document["spec"], where), inputs, absolute(storage))
    except (TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{where} is damaged ({error}); run the sweep's own spec again") from None


def read_status(sweep: Sweep) -> SweepStatus:
    """Stages and trials as the store shows them now."""
    stages = [_stage(sweep, name) for name in sweep.stages]
    stages.append(_untrained(sweep))
    trials = [trial_status(sweep, trial) for trial in sweep.trials]
    driver, elapsed = driver_status(sweep), None
    if driver is not None and driver.alive:
        _mark_running(stages)
        elapsed = time.time() - driver.since
    elif driver is not None:
        trials = [_without_driver(trial) for trial in trials]
    return SweepStatus(sweep.spec.name, stages, trials, elapsed, _eta(trials), driver)


def driver_status(sweep: Sweep) -> DriverStatus | None:
    """Who runs the sweep, as far as one look at its lease tells."""
    holder = read_holder(sweep.store, sweep.spec.name)
    if holder is None:
        return None
    return DriverStatus(holder.host, holder.pid, holder.since, holder.seems_alive)


def is_finished(sweep: Sweep, trial_id: str) -> bool:
    """Whether a trial's weights and this sweep's evaluation of it are in the store."""
    weights = sweep.store.trial(trial_id, "weights")
    paths = (weights, sweep.evaluation_path(trial_id))
    return all(sweep.store.manifest(path) is not None for path in paths)


def trial_status(sweep: Sweep, trial: Trial) -> TrialStatus:
    """Where one trial stands; finished artefacts count for more than what status.json says."""
    store, trial_id = sweep.store, trial.trial_id
    document = _whole(store.read_object(store.trial(trial_id, "status.json")))
    records = parse_metrics(store.read(store.trial(trial_id, "metrics.jsonl")))
    metrics: Metrics = dict(records[-1]) if records else {}
    failure = document.get("failure")
    status = Status(document.get("status", Status.PENDING))
    if is_finished(sweep, trial_id):
        status, failure = Status.SUCCEEDED, None
        metrics |= store.read_object(f"{sweep.evaluation_path(trial_id)}/metrics.json")
    elif status == Status.SUCCEEDED:  # another evaluation of the same weights
        status = Status.PENDING
    return TrialStatus(
        trial_id=trial_id,
        name=trial.name,
        status=status,
        path=store.display(store.trial(trial_id)),
        step=int(records[-1]["step"]) if records else 0,
        max_steps=document.get("max_steps"),
        seconds=_seconds(document, status),
        metrics=metrics,
        failure=None if failure is None else Failure(**failure),
    )


def _whole(document: dict[str, Any]) -> dict[str, Any]:
    """A trial's status.json, or nothing where a field is not what was ever written."""
    numbers = (document.get(name) for name in ("started", "updated", "max_steps"))
    failure = document.get("failure")
    try:
        Status(document.get("status", Status.PENDING))
        if failure is not None:
            Failure(**failure)
        is_whole = all(number is None or isinstance(number, int | float) for number in numbers)
    except (TypeError, ValueError):
        is_whole = False
    return document if is_whole and ("started" not in document or "updated" in document) else {}


def status_document(status: SweepStatus) -> dict[str, Any]:
    """What `status --json` prints."""
    document = asdict(status)
    keys = ("sweep", "stages", "trials", "elapsed_s", "eta_s", "driver")
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
        name, Status.PENDING, display, num_done=num_done, num_total=_num_total(sweep, name)
    )


def _num_total(sweep: Sweep, stage: str) -> int | None:
    """Shards of a stage, where its input says so already."""
    if stage == "reference":
        manifest = sweep.store.manifest(sweep.path("pairs"))
        num = None if manifest is None else manifest.notes.get("prompts with pairs")
        return None if num is None else -(-int(num) // REFERENCE_SHARD_PROMPTS)
    if sweep.entered == "completions":
        manifest = sweep.store.manifest(sweep.path("completions"))
        return None if manifest is None else len(manifest.files)
    manifest = sweep.store.manifest(sweep.path("prompts"))
    return None if manifest is None else -(-manifest.rows // sweep.spec.generation.shard_size)


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


def _seconds(document: dict[str, Any], status: Status) -> float | None:
    if "started" not in document or status == Status.PENDING:
        return None
    end = time.time() if status == Status.RUNNING else document["updated"]
    return end - document["started"]


def _eta(trials: list[TrialStatus]) -> float | None:
    """Seconds until the trials are done, by what finished ones took and how many run at once."""
    took = [t.seconds for t in trials if t.status == Status.SUCCEEDED and t.seconds is not None]
    running = sum(t.status == Status.RUNNING for t in trials)
    left = running + sum(t.status == Status.PENDING for t in trials)
    if not took or not running or not left:
        return None
    return sum(took) / len(took) * left / running
