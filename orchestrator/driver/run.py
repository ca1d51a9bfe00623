"""One run of a sweep: the steps that `pipeline.py` calls, and how a run starts and ends."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import psutil

from prefsweep.orchestrator.driver.control import Control
from prefsweep.orchestrator.driver.input_check import require_unchanged
from prefsweep.orchestrator.execution.cluster import Cluster
from prefsweep.orchestrator.planning.changes import PLAN, changes, plan_document
from prefsweep.orchestrator.report.publish import is_drawn, publish_report, report_path
from prefsweep.orchestrator.state.marker import claim
from prefsweep.orchestrator.state.quarantine import (
    quarantine,
    with_recorded_quarantine,
    without_quarantine,
)
from prefsweep.orchestrator.state.sweep import (
    SHARDED,
    UNTRAINED,
    Sweep,
    Trial,
    num_shards,
    spec_document,
)
from prefsweep.orchestrator.state.sweep_record import record_state
from prefsweep.orchestrator.state.trial_record import (
    is_finished,
    read_document,
    read_status_field,
    trial_status,
    write_status,
)
from prefsweep.orchestrator.store.paths import DELETING
from prefsweep.orchestrator.tasks.attempts import restart_from_scratch
from prefsweep.orchestrator.tasks.entry import DataTask
from prefsweep.orchestrator.tasks.shards import (
    ShardStage,
    finish_shards,
)
from prefsweep.orchestrator.tasks.stages import CheckAdapters, CheckPrompts, Task
from prefsweep.orchestrator.tracking.watcher import TrialWatch
from prefsweep.sweeps.errors import DamagedError, StoreError, UsageError
from prefsweep.sweeps.records import DROPPED, NOTED, Errored, Stage, Status

log = logging.getLogger(__name__)

DATA_STAGES = ("prompts", "completions", "scores", "pairs", "reference")
"""Stages that handle data. A sweep with its own data starts at one of them."""
AFTER_DATA = ("untrained", "trials", "report")
SKIPPED_MESSAGE: Mapping[str, str] = {
    "retry": "trial %s failed and would fail again; skipped. --restart-errored runs it from "
    "scratch, --resume-errored from its newest checkpoint",
    "skip": "trial %s failed; skipped (--skip-errored)",
}
MAX_PASSES = 5
"""How often a run rebuilds data that it finds damaged."""
WORKERS_END_S = 10.0
"""How long to wait for worker processes to end after the cluster was closed."""


class QuarantineError(Exception):
    """Prompts that kill every worker were found, by stage; caught in this file."""

    def __init__(self, killers: dict[str, list[str]]) -> None:
        super().__init__(killers)
        self.killers = killers


class Run:
    """One run of a sweep on a cluster, up to a given stage."""

    def __init__(
        self,
        sweep: Sweep,
        open_cluster: Callable[[], Cluster],
        until: str,
        *,
        errored: Errored = "retry",
    ) -> None:
        self.sweep, self.until = (
            without_quarantine(sweep) if errored == "restart" else with_recorded_quarantine(sweep),
            until,
        )
        if until in DATA_STAGES and until not in sweep.stages:
            raise UsageError(
                f"--until {until}: the sweep starts from its own data, after that stage; "
                f"its stages are {', '.join((*sweep.stages, *AFTER_DATA))}"
            )
        self._open_cluster = open_cluster
        self._cluster: Cluster | None = None
        self._errored = errored
        self._reported = set[str]()
        self.control = Control(sweep.store, sweep.spec.name)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the resolved spec and, in state.json, who runs the sweep and how the run ended.

        Raises LeaseError if another driver runs the sweep; then nothing of the sweep is written.
        """
        claim(self.sweep.store)
        with self.control:
            self.sweep.store.delete_abandoned()
            for line in changes(self.sweep):
                log.info("%s", line)
            with self.sweep.store.locked(DELETING):
                self._write_spec()
            self._record(Status.RUNNING)
            try:
                yield
            except BaseException as error:
                self._close()  # first: workers write their trials' status until they end
                if self.control.lost is not None:
                    raise self.control.lost from None
                interrupted = isinstance(error, KeyboardInterrupt)
                if interrupted:
                    self._mark_interrupted()
                self._record(Status.INTERRUPTED if interrupted else Status.FAILED)
                raise
            self._close()
            self._record(Status.SUCCEEDED)

    def run_until_complete(self, steps: Callable[["Run"], None]) -> None:
        """Run the steps, and run them again if data in the store turns out to be damaged.

        Damaged data is set aside when it is found, so the next pass rebuilds it.
        """
        num_passes = 0
        while num_passes < MAX_PASSES:
            num_passes += 1
            try:
                require_unchanged(self.sweep, self._is_unfinished)
                steps(self)
                damaged = [stage for stage in self._stages if not self._is_complete(stage)]
                if not damaged:
                    return
                log.warning("%s: damaged while in use; rebuilding", ", ".join(damaged))
            except DamagedError as error:
                log.warning("%s", error)
            except QuarantineError as error:  # this ends: each pass has fewer prompts
                num_passes -= 1
                with self.sweep.store.locked(DELETING):  # no spec references the copies yet
                    self.sweep = quarantine(self.sweep, error.killers)
                    self._write_spec()
            self._reported.clear()
        raise StoreError(
            f"{self.sweep.store.uri}: data in the store was damaged {MAX_PASSES} times in a row; "
            "check the disk, then run the same command again"
        )

    def run_in_driver(self, tasks: Sequence[DataTask]) -> None:
        """Run tasks that need no model in this process, to refuse bad input before a worker starts.

        `tasks` reuses their results.
        """
        for task in tasks:
            if self._includes(task.name) and not task.needs_policy() and not task.done():
                with self.control.interruptible():
                    task.run()
                self._log_done(task.name)

    def adapters(self) -> None:
        """Check the adapters of trials that will run, so that wrong ones are refused early."""
        if self.sweep.spec.training.lora is not None and self._is_unfinished("trials"):
            cluster = self._cluster_for("finishing the check of the adapters first")
            cluster.run_tasks([CheckAdapters(self.sweep)])

    def tasks(self, tasks: Sequence[Task]) -> None:
        """Run the tasks that are needed and not done, in parallel."""
        wanted = [task for task in tasks if self._includes(task.name)]
        missing = [task for task in wanted if not task.done()]
        for task in wanted:
            if task not in missing:
                self._log_cached(task.name)
        if missing:
            names = ", ".join(task.name for task in missing)
            log.info("%s: running", names)
            killers = self._cluster_for(f"finishing {names} first").run_tasks(missing)
            self.control.check()
            if killers:
                raise QuarantineError(killers)
            for task in missing:
                self._log_done(task.name)

    def shards(self, stages: Sequence[ShardStage]) -> None:
        """Run the sharded stages that are needed and not done, streaming shards through them."""
        wanted = [stage for stage in stages if self._includes(stage.name)]
        missing = [stage for stage in wanted if not self._is_done(stage.name)]
        for stage in wanted:
            if stage not in missing:
                self._log_cached(stage.name)
        if not missing:
            return
        if missing[0].name == self._first_sharded():
            self._cluster_for("finishing the check of the prompts first").run_tasks(
                [CheckPrompts(self.sweep)]
            )
        num, started = num_shards(self.sweep, missing[0].name), time.monotonic()
        assert num is not None, "what the stage reads is finished"
        log.info("%s: running %d shards", " -> ".join(stage.name for stage in missing), num)
        cluster = self._cluster_for("finishing the shards in flight first")
        killers = cluster.run_shards(missing, num)
        self.control.check()
        if killers:
            raise QuarantineError(killers)
        for stage in missing:
            finish_shards(stage, self.sweep, num, time.monotonic() - started)
            self._log_done(stage.name)

    def trials(self) -> None:
        """Run the unfinished trials and mirror their metrics."""
        if not self._includes("trials"):
            return
        todo, skipped = self._unfinished()
        for trial in skipped:
            log.info(SKIPPED_MESSAGE[self._errored], trial.name)
        num_cached = len(self.sweep.trials) - len(todo)
        log.info("trials: %d to run, %d cached", len(todo), num_cached)
        if not todo:
            return
        for trial in todo:
            if self._errored == "restart" and self._failed_as(trial) is not None:
                restart_from_scratch(self.sweep, trial)
            write_status(self.sweep, trial, Status.PENDING)
        if self._errored != "skip":  # failed trials are restarted or resumed once per run
            self._errored = "retry"
        self._verify_inputs()
        started = time.monotonic()
        cluster = self._cluster_for("running trials save a checkpoint at their next step")
        with TrialWatch(self.sweep, todo):
            cluster.run_trials(self.sweep, todo)
        self.control.check()
        log.info("trials: done in %.1f s", time.monotonic() - started)

    def report(self) -> None:
        """Write the report, if the run includes it and its content has changed."""
        if not self._includes("report"):
            return
        where = self.sweep.store.display(report_path(self.sweep))
        if is_drawn(self.sweep):
            log.info("report: cached, %s", where)
            return
        with self.control.interruptible():
            publish_report(self.sweep)
        log.info("report: %s", where)

    def _cluster_for(self, finishing: str) -> Cluster:
        """The cluster, opened at its first use; `finishing` says what a stop waits for from now on.

        Raises KeyboardInterrupt after a stop request.
        """
        if self._cluster is None:
            self.control.finishing = "waiting until Ray has started"
            try:
                self._cluster = self._open_cluster()
            except SystemExit:  # Ray raises it on SIGTERM while it starts
                raise KeyboardInterrupt from None
            self.control.handle_signals()
        self.control.check()
        self.control.finishing = finishing
        return self._cluster

    def _verify_inputs(self) -> None:
        """Check the artifacts that all trials read before the first trial starts.

        Only for local stores: elsewhere this would download them, and the workers check theirs.
        """
        sweep = self.sweep
        if not sweep.store.is_local:
            return
        models = [stage for stage, made in sweep.made.items() if made]
        with self.control.interruptible():
            for stage in (*models, "eval_prompts", "reference", UNTRAINED):
                sweep.store.fetch(sweep.path(stage))

    def _close(self) -> None:
        """Close the cluster, and delete the temporary files of workers that were killed."""
        store, workers = self.sweep.store, set[int]()
        if self._cluster is not None:
            workers = {process.pid for process in psutil.Process().children(recursive=True)}
            self._cluster.close()
        store.delete_abandoned()
        deadline_s = time.monotonic() + WORKERS_END_S
        while workers & store.scratch_owners() and time.monotonic() < deadline_s:
            time.sleep(0.1)
            store.delete_abandoned()

    def _write_spec(self) -> None:
        store, name = self.sweep.store, self.sweep.spec.name
        store.write_json(store.sweep(name, "spec.json"), spec_document(self.sweep))
        store.write_json(store.sweep(name, PLAN), plan_document(self.sweep))

    def _record(self, status: Status) -> None:
        record_state(self.sweep.store, self.sweep.spec.name, status)

    def _mark_interrupted(self) -> None:
        for trial in self.sweep.trials:
            if read_status_field(read_document(self.sweep, trial)) == Status.RUNNING:
                write_status(self.sweep, trial, Status.INTERRUPTED)

    def _unfinished(self) -> tuple[list[Trial], list[Trial]]:
        """Trials without weights or evaluation: those to run, and failed ones to skip."""
        todo: list[Trial] = []
        skipped: list[Trial] = []
        for trial in self.sweep.trials:
            if not is_finished(self.sweep, trial.trial_id):
                (skipped if self._is_skipped(trial) else todo).append(trial)
        return todo, skipped

    def _is_skipped(self, trial: Trial) -> bool:
        if self._errored == "skip":
            return self._failed_as(trial) is not None
        return self._errored == "retry" and self._failed_as(trial) == "deterministic"

    def _failed_as(self, trial: Trial) -> str | None:
        """The kind of failure of a failed trial; None for any other trial."""
        status = trial_status(self.sweep, trial)
        if status.status != Status.FAILED:
            return None
        return "deterministic" if status.failure is None else status.failure.kind

    def _is_unfinished(self, stage: str) -> bool:
        """Whether the run includes a stage (or the trials) that has unfinished work."""
        if not self._includes(stage):
            return False
        return bool(self._unfinished()[0]) if stage == "trials" else not self._is_done(stage)

    def _includes(self, stage: str) -> bool:
        if stage not in (*self._stages, *AFTER_DATA):
            return False
        at = "prompts" if stage == "eval_prompts" else stage
        stages = list(Stage)
        return stages.index(Stage(at)) <= stages.index(Stage(self.until))

    @property
    def _stages(self) -> tuple[str, ...]:
        """The stages before the trials."""
        return tuple(dict.fromkeys((*self.sweep.stages, "eval_prompts", UNTRAINED)))

    def _first_sharded(self) -> str:
        """The first stage whose workers process prompts."""
        stages = [stage for stage in self.sweep.stages if stage in SHARDED]
        return next(stage for stage in stages if stage != self.sweep.entered)

    def _is_complete(self, stage: str) -> bool:
        """Whether a stage that the run includes is complete in the store."""
        return not self._includes(stage) or self._is_done(stage)

    def _is_done(self, stage: str) -> bool:
        return self.sweep.store.manifest(self.sweep.path(stage)) is not None

    def _log_cached(self, stage: str) -> None:
        if stage not in self._reported:
            log.info("%s: cached", stage)
        self._reported.add(stage)

    def _log_done(self, stage: str) -> None:
        self._reported.add(stage)
        path = self.sweep.path(stage)
        manifest = self.sweep.store.manifest(path)
        assert manifest is not None
        where = self.sweep.store.display(path)
        log.info("%s: %d rows in %.1f s, %s", stage, manifest.rows, manifest.seconds, where)
        for name, count in manifest.notes.items():
            if name.startswith(DROPPED) and count:
                log.warning("%s: dropped %d: %s", stage, count, name.removeprefix(DROPPED))
            if name.startswith(NOTED) and count:
                log.warning("%s: %s: %d", stage, name.removeprefix(NOTED), count)
