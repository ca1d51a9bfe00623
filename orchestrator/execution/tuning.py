"""Runs groups of trials (mostly of one trial) with Ray Tune. The store has the state of each trial.

Every launch is a new Tuner over the unfinished trials. `run_group` records failures of trials, so
Tune only sees deaths of workers. Tune reruns the trials of a dead worker, but aborts the whole run
if Ray kills a worker for memory, and after some losses of nodes. Unfinished trials are then
launched again, as long as launches make progress.
"""

import logging
import pickle
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefsweep.orchestrator.execution.grouping import ALONE, Grouping, make_groups
from prefsweep.orchestrator.execution.membership import Members
from prefsweep.orchestrator.execution.node_watch import LOCAL_S, NodeWatch
from prefsweep.orchestrator.execution.secrets import keep_from_tune
from prefsweep.orchestrator.state.stop import polled_stop
from prefsweep.orchestrator.state.sweep import Sweep, Trial
from prefsweep.orchestrator.state.trial_record import (
    TrialRecord,
    has_weights,
    read_document,
    read_status_field,
    write_status,
)
from prefsweep.orchestrator.store.scratch import scratch_folder, scratch_home
from prefsweep.orchestrator.tasks.attempts import WorkerSlot
from prefsweep.orchestrator.tasks.cache import WorkerCache
from prefsweep.orchestrator.tasks.checkpoints import newest_step
from prefsweep.orchestrator.tasks.failures import AGAIN, delay_s, pause, worker_killed_for_memory
from prefsweep.orchestrator.tasks.trial_group import run_group
from prefsweep.orchestrator.tasks.worker import hide_gpus_of_others, set_up_worker
from prefsweep.sweeps.errors import NodeError
from prefsweep.sweeps.records import Failure, Status
from prefsweep.workers.losses import mixes_rows

if TYPE_CHECKING:
    from ray import tune

log = logging.getLogger(__name__)

KILLED_FOR_MEMORY = "low on memory"
"""Text in Ray's error for a worker that its memory monitor killed."""
_KILLED = re.compile(r"^Selected to kill:.*$", re.MULTILINE)
"""Lines of that error with the killed workers; other lines name other workers."""
_PID = re.compile(r"\bpid=(\d+)")
_NODE = re.compile(r"Memory on the node \(IP: [^,]+, ID: (\w+)\)")


def tune_trials(
    sweep: Sweep,
    trials: Sequence[Trial],
    gpus_per_trial: float,
    memory: float = 0.0,
    members: Members | None = None,
    grouping: Grouping = ALONE,
) -> None:
    """Run all trials until each has succeeded, failed or been interrupted, according to the store.

    `gpus_per_trial` and `memory` are per group. `members` are the nodes that may be used; None is
    all nodes.

    After `retries.max_attempts` consecutive launches without progress of any trial, the unfinished
    trials fail. If a launch ended because a trial used too much memory, it counts as a failed
    attempt of that trial only. After a stop request, nothing is launched.
    """
    retries, should_stop = sweep.spec.retries, polled_stop(sweep.store, sweep.spec.name)
    unfinished, stalled, error = list(trials), 0, ""
    kept_off = set[str]() if members is None else members.kept_off
    while True:
        before, num_kept_off = [_progress(sweep, trial) for trial in unfinished], len(kept_off)
        error = _launch(sweep, unfinished, gpus_per_trial, memory, members, grouping)
        stalled += 1
        came_further = before != [_progress(sweep, trial) for trial in unfinished]
        is_one_to_blame = _blame(sweep, unfinished, error)
        if came_further or is_one_to_blame or len(kept_off) > num_kept_off:
            stalled = 0
        unfinished = [trial for trial in unfinished if not _has_ended(sweep, trial)]
        if not unfinished or should_stop():
            break
        if stalled >= retries.max_attempts:
            _give_up(
                sweep,
                unfinished,
                f"{stalled} launches in a row made no progress. {error}",
            )
            return
        log.warning("%d trials did not finish and are launched again. %s", len(unfinished), error)
        if stalled or is_one_to_blame:
            pause(delay_s(retries, max(1, stalled)), should_stop)
    for trial in unfinished:
        write_status(sweep, trial, Status.INTERRUPTED)


def shares(sweep: Sweep, trials: Sequence[Trial], gpus_per_trial: float) -> dict[str, float]:
    """Trial ID -> its share of a GPU: doubled, up to 1, each time it was too small."""
    share: dict[str, float] = {}
    for trial in trials:
        doublings = TrialRecord(sweep, trial).larger_shares
        larger = min(1.0, gpus_per_trial * 2**doublings)
        share[trial.trial_id] = larger if 0 < gpus_per_trial < 1 else gpus_per_trial
    return share


def _launch(
    sweep: Sweep,
    trials: Sequence[Trial],
    gpus_per_trial: float,
    memory: float,
    members: Members | None,
    grouping: Grouping = ALONE,
) -> str:
    """Run one Tuner over groups of `trials`; returns its error, or "".

    Raises StageError if the cluster has no nodes any more.
    """
    from ray import tune

    keep_from_tune()
    groups = {group[0].trial_id: group for group in make_groups(sweep, trials, grouping)}
    of_trials = shares(sweep, trials, gpus_per_trial)
    gpus = {key: max(of_trials[trial.trial_id] for trial in groups[key]) for key in groups}
    max_failures = (sweep.spec.retries.max_attempts + 1) * max(map(len, groups.values()))
    resources, retries = sweep.spec.resources, sweep.spec.retries
    cache = WorkerCache(sweep)  # each worker has its own, for all its trials
    node_watch = NodeWatch(LOCAL_S if members is None else retries.max_stall_s)

    def trainable(config: dict[str, Any]) -> dict[str, int]:
        if members is not None:
            members.check()
        hide_gpus_of_others()
        set_up_worker(resources.threads_per_worker)
        sweep.store.delete_abandoned()
        first = config["trial_id"]
        run_group(cache, groups[first], WorkerSlot(gpus[first], is_worker=True))
        return {"ended": 1}

    def bundle(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        share = {"GPU": gpus[config["trial_id"]], "memory": memory}
        asked = {name: amount for name, amount in share.items() if amount}
        bundles = [{"CPU": float(resources.cpus_per_worker), **asked}]
        selector = {} if members is None else members.selector()
        places: dict[str, Any] = {"bundle_label_selector": [selector]} if selector else {}
        return tune.PlacementGroupFactory(bundles, **places)

    with scratch_folder(scratch_home()) as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, bundle),
            param_space={"trial_id": tune.grid_search(list(groups))},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                name=sweep.spec.name,
                storage_path=str(folder),
                verbose=0,
                # run_group reaches its own retry limit before this one, and records the reason
                failure_config=tune.FailureConfig(max_failures=max_failures),
                callbacks=[_watchdog(sweep, node_watch), *_refusals(members)],
            ),
        )
        try:
            errors = tuner.fit().errors
        except Exception as error:  # Tune has aborted; the store has the status of each trial
            log.debug("Tune aborted", exc_info=True)
            if node_watch.lost is not None:
                raise node_watch.lost from None
            return str(error)
    return str(errors[0]) if errors else ""


def _watchdog(sweep: Sweep, node_watch: NodeWatch) -> "tune.Callback":
    """Ends a launch in which trials wait and none runs, because the cluster has no resources.

    After a stop request, it ends immediately.
    """
    from ray import tune

    max_stall_s = sweep.spec.retries.max_stall_s
    should_stop = polled_stop(sweep.store, sweep.spec.name)

    class Watchdog(tune.Callback):
        def __init__(self) -> None:
            self._last_running_s = time.monotonic()

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            node_watch.check()
            if any(trial.status == "RUNNING" for trial in trials):
                self._last_running_s = time.monotonic()
            elif should_stop():
                raise RuntimeError("a stop was requested")
            elif time.monotonic() - self._last_running_s > max_stall_s:
                raise RuntimeError(
                    f"for {max_stall_s:g} s no trial has got resources in the cluster: it has lost "
                    "nodes, or others use it"
                )

    return Watchdog()


def _refusals(members: Members | None) -> list["tune.Callback"]:
    """As soon as a node turns out to be unusable, notes it; the next launch excludes it."""
    if members is None:
        return []
    from ray import tune

    class Refusals(tune.Callback):
        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any):
            text, error = trial.error_file, trial.pickled_error_file  # written by this process
            if text and error and NodeError.__name__ in Path(text).read_text(errors="replace"):
                members.keep_off(pickle.loads(Path(error).read_bytes()))

        on_trial_error = on_trial_recover

    return [Refusals()]


def _blame(sweep: Sweep, trials: Sequence[Trial], error: str) -> bool:
    """For each trial killed for memory, halve its group; if it ran alone, halve its batch, or fail
    it after `retries.max_attempts`.

    Trials that ended only because the launch was aborted are not changed. Returns whether any trial
    was killed for memory.
    """
    if KILLED_FOR_MEMORY not in error:
        return False
    killed, is_one_to_blame = _killed(error), False
    for trial in trials:
        document = read_document(sweep, trial)
        if read_status_field(document) != Status.RUNNING:
            continue
        state = TrialRecord(sweep, trial)
        if not _is_among(killed, document):
            state.stalled_attempts = max(0, state.stalled_attempts - 1)
            state.write(Status.PENDING)
            continue
        is_one_to_blame, failure = True, worker_killed_for_memory(error)
        log.warning("trial %s: %s", trial.name, failure.message)
        if state.group > 1:
            state.last_failure = failure
            state.halve_group()
            state.write(Status.PENDING)
        elif state.stalled_attempts >= sweep.spec.retries.max_attempts:
            state.write(Status.FAILED, failure)
        else:
            state.last_failure = failure
            state.halvings += not mixes_rows(trial.spec)
            state.write(Status.PENDING)
    return is_one_to_blame


def _killed(error: str) -> set[tuple[str | None, int]]:
    """Node (None if unknown) and process ID of each worker that Ray killed for memory."""
    node = _NODE.search(error)
    lines = "\n".join(_KILLED.findall(error)) or error
    return {(node and node.group(1), int(pid)) for pid in _PID.findall(lines)}


def _is_among(killed: set[tuple[str | None, int]], document: dict[str, Any]) -> bool:
    """Whether the process that wrote a status.json is among the killed workers."""
    worker = document.get("worker")
    if not isinstance(worker, dict):
        return False
    pid = worker.get("pid")
    return (worker.get("node"), pid) in killed or (None, pid) in killed


def _progress(sweep: Sweep, trial: Trial) -> tuple[object, ...]:
    """A value that changes when a launch makes progress with the trial."""
    document = read_document(sweep, trial)
    settings = tuple(document.get(key) for key in ("halvings", "larger_shares", "largest_group"))
    is_trained = has_weights(sweep.store, trial)
    return _has_ended(sweep, trial), is_trained, newest_step(sweep, trial), settings


def _has_ended(sweep: Sweep, trial: Trial) -> bool:
    status = read_status_field(read_document(sweep, trial))
    return status in (Status.SUCCEEDED, Status.FAILED)


def _give_up(sweep: Sweep, trials: Sequence[Trial], message: str) -> None:
    for trial in trials:
        last = TrialRecord(sweep, trial).last_failure
        failure = last or Failure("transient", message.strip(), "", AGAIN)
        write_status(sweep, trial, Status.FAILED, failure)
