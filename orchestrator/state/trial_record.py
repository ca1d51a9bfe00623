"""The two record files of a trial: metrics.jsonl with its curves, and status.json.

status.json also records, across workers and launches, how often the trial was attempted and how its
batch and GPU share were changed. Of a damaged file, the readable part is used.

An object store cannot append, so there metrics.jsonl is rewritten from time to time, and before
anything is stored that relies on its lines. On a disk it is rewritten if its size is not what this
process has written, which means that another run of the same trial writes it too. The lines of both
runs are equal. The file of a trial that has its weights is complete and is not rewritten.
"""

import json
import math
import os
import socket
import time
from dataclasses import asdict, fields
from typing import Any, get_args

from prefsweep.orchestrator.state.sweep import Sweep, Trial
from prefsweep.orchestrator.store.manifest import node
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.records import Failure, FailureKind, Metrics, Status, TrialStatus

REWRITE_S = 5.0
"""Minimum time between two rewrites of all metrics in a store without append."""
REWRITE_SHARE = 0.05
"""Maximum share of a trial's time for such rewrites: the longer the log, the rarer they are."""


class TrialRecord:
    """Writes both files of one trial, in the process that runs it."""

    def __init__(self, sweep: Sweep, trial: Trial, gpus: float = 0.0) -> None:
        self._store, self._trial = sweep.store, trial
        self.gpus = gpus
        """Share of a GPU that this process has for the trial."""
        found = read_document(sweep, trial)
        self.found = read_status_field(found)
        """The status before this process started the trial."""
        self.attempts = read_count(found, "attempts")
        self.stalled_attempts = read_count(found, "fruitless")
        """Consecutive attempts without progress, including the current one."""
        self.halvings = read_count(found, "halvings")
        self.larger_shares = read_count(found, "larger_shares")
        """How often the trial's share of the GPU was doubled."""
        self.group = read_count(found, "group")
        """Trials that its process trains as one with it, itself included; 0 before it began."""
        self.largest_group = read_count(found, "largest_group")
        """Most trials to train as one with it, because more did not fit or died; 0: any number."""
        self.last_failure = read_failure(found.get("last_failure"))
        self._progress = read_count(found, "reached")
        self._started = self._resumed = time.time()
        self._resumed_step = 0.0
        self._step, self._max_steps = float(read_count(found, "step")), found.get("max_steps")
        self.has_stepped = False
        """Whether training has made a step since it was started or resumed."""
        self._lines: list[bytes] = []
        self._num_bytes = 0
        self._is_behind, self._next_rewrite_s = False, 0.0

    @property
    def progress(self) -> int:
        """The trial's progress in the store when the last attempt began."""
        return self._progress

    @property
    def metrics(self) -> bytes:
        """All lines of metrics.jsonl so far."""
        return b"".join(self._lines)

    def begin(self, progress: int) -> None:
        """Record that an attempt begins. `progress` is the progress in the store; it only grows."""
        if progress > self._progress:
            self.stalled_attempts = 0
        self._progress = progress
        self.attempts += 1
        self.stalled_attempts += 1
        self.write(Status.RUNNING)

    def halve_group(self) -> None:
        """Halve the maximum size of the trial's group. This counts as progress."""
        self.largest_group, self.stalled_attempts = (self.group + 1) // 2, 0

    def restart(self, step: int, metrics: bytes, max_steps: float | None) -> None:
        """Continue after `step` with the metrics lines of a checkpoint."""
        self.has_stepped = False
        self._lines = [_line(record) for record in parse_metrics(metrics) if record["step"] <= step]
        self._num_bytes = sum(map(len, self._lines))
        self._is_behind = True
        self.flush()
        self._step, self._max_steps = float(step), max_steps
        self._resumed, self._resumed_step = time.time(), float(step)

    def report(self, record: dict[str, float]) -> None:
        """Append one line of metrics and record its step."""
        line, path, num_bytes_before = _line(record), self._metrics_path(), self._num_bytes
        self._lines.append(line)
        self._num_bytes += len(line)
        self._step, self._is_behind = record["step"], True
        if not self._store.is_local:
            if time.monotonic() < self._next_rewrite_s:
                return
        elif self._store.num_bytes(path) == num_bytes_before:
            self._store.append(path, line)
            self._is_behind = False
        self.write(Status.RUNNING)

    def flush(self) -> None:
        """Write pending lines to the store; a trial that has its weights has all its lines."""
        if self._is_behind and not has_weights(self._store, self._trial):
            self.complete()

    def complete(self) -> None:
        """Write all lines in order, replacing what was there."""
        started = time.monotonic()
        self._store.write(self._metrics_path(), self.metrics)
        self._is_behind = False
        now = time.monotonic()
        self._next_rewrite_s = now + max(REWRITE_S, (now - started) / REWRITE_SHARE)

    def write(self, status: Status, failure: Failure | None = None) -> None:
        """Record the trial's status, and all metrics lines so far."""
        self.flush()
        if failure is not None:
            self.last_failure = failure
        last = self.last_failure
        document = {
            "status": status,
            "name": self._trial.name,
            "started": self._started,
            "updated": time.time(),
            "step": self._step,
            "max_steps": self._max_steps,
            "resumed": self._resumed,
            "resumed_step": self._resumed_step,
            "failure": None if failure is None else asdict(failure),
            "last_failure": None if last is None else asdict(last),
            "attempts": self.attempts,
            "fruitless": self.stalled_attempts,
            "halvings": self.halvings,
            "larger_shares": self.larger_shares,
            "group": self.group,
            "largest_group": self.largest_group,
            "reached": self._progress,
            "worker": {"host": socket.gethostname(), "pid": os.getpid(), **node()},
        }
        self._store.write_json(status_path(self._store, self._trial), document)

    def _metrics_path(self) -> str:
        return self._store.trial(self._trial.trial_id, "metrics.jsonl")


def write_status(
    sweep: Sweep, trial: Trial, status: Status, failure: Failure | None = None
) -> None:
    """Record a trial's status from another process, keeping the other fields of status.json.

    `Status.PENDING` resets the count of consecutive attempts without progress.
    """
    document = {"name": trial.name, "started": time.time()} | read_document(sweep, trial)
    record = None if failure is None else asdict(failure)
    document |= {"status": status, "updated": time.time(), "failure": record}
    if record is not None:
        document["last_failure"] = record
    if status == Status.PENDING:
        document["fruitless"] = 0
    sweep.store.write_json(status_path(sweep.store, trial), document)


def read_document(sweep: Sweep, trial: Trial) -> dict[str, Any]:
    """Read status.json; empty if it is missing or damaged."""
    document = sweep.store.read_json(status_path(sweep.store, trial))
    return document if isinstance(document, dict) else {}


def read_status_field(document: dict[str, Any]) -> Status:
    """The status in a status.json; pending if it is missing or unknown."""
    try:
        return Status(document.get("status", Status.PENDING))
    except ValueError:
        return Status.PENDING


def read_failure(value: Any) -> Failure | None:
    """Parse a failure in status.json; None if there is none."""
    known = {field.name for field in fields(Failure)}
    try:
        found = Failure(**{key: item for key, item in value.items() if key in known})
    except (AttributeError, TypeError):
        return None
    is_valid = all(isinstance(item, str) for item in asdict(found).values())
    return found if is_valid and found.kind in get_args(FailureKind) else None


def read_count(document: dict[str, Any], key: str) -> int:
    """A count in a status.json; 0 if missing."""
    value: Any = document.get(key)
    return int(value) if _is_number(value) and math.isfinite(value) else 0


def read_metrics(sweep: Sweep, trial_id: str) -> Metrics:
    """Read the metrics of an evaluation; values that are not numbers are left out."""
    found = sweep.store.read_object(f"{sweep.evaluation_path(trial_id)}/metrics.json")
    return {key: item for key, item in found.items() if item is None or _is_number(item)}


def parse_metrics(data: bytes | None) -> list[dict[str, float]]:
    """Parse the lines of a metrics.jsonl; incomplete and damaged lines are left out."""
    records: list[dict[str, float]] = []
    for line in (data or b"").decode(errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict) or not all(map(_is_number, record.values())):
            continue
        if "step" in record and math.isfinite(record["step"]):
            records.append(record)
    return records


def has_weights(store: Store, trial: Trial) -> bool:
    """Whether a trial's training is finished."""
    return store.manifest(store.trial(trial.trial_id, "weights")) is not None


def status_path(store: Any, trial: Trial) -> str:
    """Path of a trial's status.json."""
    return store.trial(trial.trial_id, "status.json")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _line(record: dict[str, float]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def is_finished(sweep: Sweep, trial_id: str) -> bool:
    """Whether a trial's weights and this sweep's evaluation of it are in the store."""
    weights = sweep.store.trial(trial_id, "weights")
    paths = (weights, sweep.evaluation_path(trial_id))
    return all(sweep.store.manifest(path) is not None for path in paths)


def trial_status(sweep: Sweep, trial: Trial) -> TrialStatus:
    """Read the status of one trial; finished artefacts take precedence over status.json."""
    store, trial_id = sweep.store, trial.trial_id
    document = _valid_or_empty(read_document(sweep, trial))
    metrics: Metrics = newest_metrics(store.read_record(store.trial(trial_id, "metrics.jsonl")))
    failure = read_failure(document.get("failure"))
    status = read_status_field(document)
    if is_finished(sweep, trial_id):
        status, failure = Status.SUCCEEDED, None
        metrics |= read_metrics(sweep, trial_id)
    elif status == Status.SUCCEEDED:  # only an evaluation with other settings is finished
        status = Status.PENDING
    return TrialStatus(
        trial_id=trial_id,
        name=trial.name,
        status=status,
        path=store.display(store.trial(trial_id)),
        step=int(metrics.get("step") or 0),
        max_steps=document.get("max_steps"),
        seconds=_seconds(document, status),
        step_seconds=_step_seconds(document, status),
        metrics=metrics,
        failure=failure,
        attempts=read_count(document, "attempts"),
        halvings=read_count(document, "halvings"),
    )


def _valid_or_empty(document: dict[str, Any]) -> dict[str, Any]:
    """A trial's status.json, or an empty one if a time or step count in it is invalid."""
    times = [document[name] for name in ("started", "updated") if name in document]
    numbers = [*times, document.get("max_steps") or 0]
    is_valid = all(isinstance(number, int | float) for number in numbers)
    return document if is_valid and len(times) != 1 else {}


def newest_metrics(data: bytes | None) -> Metrics:
    """The last complete line of a metrics.jsonl, merged into its last evaluation line."""
    lines = (data or b"").split(b"\n")
    newest = next((found for line in reversed(lines) if (found := parse_metrics(line))), [{}])
    last = next((line for line in reversed(lines) if b'"eval/' in line), b"")
    evaluation = next(iter(parse_metrics(last)), {})
    return {**evaluation, **newest[0]}


def _seconds(document: dict[str, Any], status: Status) -> float | None:
    if "started" not in document or status == Status.PENDING:
        return None
    end = time.time() if status == Status.RUNNING else document["updated"]
    return max(0.0, end - document["started"])


def _step_seconds(document: dict[str, Any], status: Status) -> float | None:
    """Mean seconds per step of a running trial since it was started or resumed."""
    resumed, updated = document.get("resumed"), document.get("updated")
    num_steps = read_count(document, "step") - read_count(document, "resumed_step")
    if status != Status.RUNNING or num_steps <= 0:
        return None
    if not isinstance(resumed, int | float) or not isinstance(updated, int | float):
        return None
    return max(0.0, updated - resumed) / num_steps
