"""Where work runs. A Cluster runs tasks once, stages over shards, and trials.

RayCluster uses a local or remote Ray; InlineCluster runs everything in this process, for debugging
and tests. Both give the same results: no result depends on who computed it.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from prefsweep.orchestrator.execution.grouping import (
    Grouping,
    largest_set,
    make_groups,
    size_that_pays,
)
from prefsweep.orchestrator.execution.hosts import Hosts
from prefsweep.orchestrator.execution.membership import Members, members_of
from prefsweep.orchestrator.execution.node_watch import LOCAL_S
from prefsweep.orchestrator.execution.nodes import check_cluster
from prefsweep.orchestrator.execution.placement import (
    Demand,
    Placement,
    gpu_types,
    ray_nodes,
    resources_of,
)
from prefsweep.orchestrator.execution.ray_session import attach_ray, start_ray
from prefsweep.orchestrator.execution.scheduler import run_shards, run_tasks, stage_pool
from prefsweep.orchestrator.execution.sizing import (
    cpu_memory,
    policy_size,
    reserved_memory,
    trial_share,
)
from prefsweep.orchestrator.state.inputs import store_inputs
from prefsweep.orchestrator.state.stop import polled_stop, stop_requested
from prefsweep.orchestrator.state.sweep import Sweep, Trial
from prefsweep.orchestrator.tasks.attempts import WorkerSlot
from prefsweep.orchestrator.tasks.cache import WorkerCache
from prefsweep.orchestrator.tasks.probe import ProbeGroups, ProbeTrial
from prefsweep.orchestrator.tasks.shards import ShardStage, is_missing, run_shard
from prefsweep.orchestrator.tasks.stages import Task
from prefsweep.orchestrator.tasks.trial_group import run_group
from prefsweep.orchestrator.tasks.worker import set_up_worker
from prefsweep.sweeps.runtime import RetriesSpec
from prefsweep.sweeps.spec import ResourcesSpec

if TYPE_CHECKING:
    from types import ModuleType

log = logging.getLogger(__name__)

GPU_TASKS = frozenset({"policy", "reward", "untrained"})
"""Tasks that train or run a model."""
STAGES_ON_WORKERS = ("completions", "scores", "reference", "trials")
"""Stages whose workers must fit on the cluster."""


class Cluster(Protocol):
    """The interface that the pipeline uses to run work."""

    def run_tasks(self, tasks: Sequence[Task]) -> dict[str, list[str]]:
        """Run tasks in parallel; raises the error of the first one that fails.

        Returns prompts that kill every worker, by task; such a task is not finished.
        """
        ...

    def run_shards(self, stages: Sequence[ShardStage], num_shards: int) -> dict[str, list[str]]:
        """Run every shard through the stages, each stage as soon as the previous one is finished.

        Returns prompts that kill every worker, by stage; their shards are not finished.
        """
        ...

    def run_trials(self, sweep: Sweep, trials: Sequence[Trial]) -> None:
        """Run trials; their outcome is in the store."""
        ...

    def close(self) -> None:
        """Release all resources."""
        ...


def open_cluster(sweep: Sweep, *, address: str | None, inline: bool) -> Cluster:
    """This process (`inline`), the Ray cluster at `address` or RAY_ADDRESS, or else a local Ray.

    Raises ClusterError.
    """
    if inline:
        return InlineCluster(sweep.spec.resources)
    where = address or os.environ.get("RAY_ADDRESS")
    if where:
        return attach(sweep, where)
    max_stall_s = sweep.spec.retries.max_stall_s
    return RayCluster(resources_of(sweep.spec), max_stall_s=max_stall_s)


def attach(sweep: Sweep, address: str) -> "RayCluster":
    """Attach to the cluster at `address`: check its nodes, and store local inputs for its workers.

    Raises ClusterError.
    """
    ray = attach_ray(address, sweep.spec)
    try:
        check_cluster(sweep.store)
        for field in store_inputs(sweep.store, sweep.spec, sweep.inputs):
            log.info("%s: read from the store by the workers", field)
        return RayCluster(
            resources_of(sweep.spec),
            attached=ray,
            members=members_of(sweep),
            max_stall_s=sweep.spec.retries.max_stall_s,
            should_stop=polled_stop(sweep.store, sweep.spec.name),
        )
    except BaseException:
        ray.shutdown()
        raise


class InlineCluster:
    """Runs everything in this process, one step after another, without Ray."""

    def __init__(self, resources: ResourcesSpec) -> None:
        self._threads = resources.threads_per_worker

    def run_tasks(self, tasks: Sequence[Task]) -> dict[str, list[str]]:
        set_up_worker(self._threads)
        for task in tasks:
            task.run()
        return {}

    def run_shards(self, stages: Sequence[ShardStage], num_shards: int) -> dict[str, list[str]]:
        set_up_worker(self._threads)
        workers: dict[str, Any] = {}
        sweep = stages[0].sweep
        for index in range(num_shards):
            for stage in stages:
                if stop_requested(sweep.store, sweep.spec.name):
                    return {}
                if is_missing(stage, index):
                    if stage.name not in workers:
                        workers[stage.name] = stage.load()
                    run_shard(stage, workers[stage.name], index)
        return {}

    def run_trials(self, sweep: Sweep, trials: Sequence[Trial]) -> None:
        set_up_worker(self._threads)
        cache, grouping = WorkerCache(sweep), Grouping(self._largest(sweep, trials))
        for group in make_groups(sweep, trials, grouping):
            if stop_requested(sweep.store, sweep.spec.name):
                return
            run_group(cache, group, WorkerSlot())

    def close(self) -> None:
        pass

    def _largest(self, sweep: Sweep, trials: Sequence[Trial]) -> int:
        """The largest size of a group: as asked for, or as a probe on this process's GPU finds."""
        import torch

        fuse = sweep.spec.training.fuse
        if isinstance(fuse, int):
            return fuse
        if fuse == "off" or not torch.cuda.is_available():
            return 1
        alike = largest_set(sweep, trials)
        if len(alike) < 2:
            return 1
        probe = ProbeGroups(sweep, alike, torch.cuda.get_device_name())
        probe.run()
        return size_that_pays(probe, 1.0)


class RayCluster:
    """A local Ray started for this run, or the cluster that `attached` gives."""

    def __init__(
        self,
        resources: ResourcesSpec,
        *,
        num_cpus: int | None = None,
        num_gpus: int | None = None,
        attached: "ModuleType | None" = None,
        members: Members | None = None,
        max_stall_s: float = RetriesSpec().max_stall_s,
        should_stop: Callable[[], bool] = lambda: False,
        probe: type[ProbeTrial] = ProbeTrial,
        group_probe: type[ProbeGroups] = ProbeGroups,
    ) -> None:
        self._resources, self._members = resources, members
        self._probe, self._group_probe = probe, group_probe
        self._ray = attached or start_ray(resources.threads_per_worker, num_cpus, num_gpus)
        # Tune takes seconds to import; it is loaded before the trials start
        threading.Thread(target=import_module, args=["ray.tune"], daemon=True).start()
        kept_off = frozenset[str]() if members is None else members.kept_off
        self._placement = Placement(resources, lambda: ray_nodes(kept_off))
        self._demand = Demand(self._placement, enabled=attached is not None)
        try:
            with self._demand.of(list(STAGES_ON_WORKERS), 1):
                self._placement.require(STAGES_ON_WORKERS, should_stop)
        except BaseException:  # the caller gets no cluster to close
            self.close()
            raise
        self._hosts = Hosts(
            num_cpus=resources.cpus_per_worker,
            threads=resources.threads_per_worker,
            members=members,
            patience_s=LOCAL_S if attached is None else max_stall_s,
            max_stall_s=max_stall_s,
        )

    def run_tasks(self, tasks: Sequence[Task]) -> dict[str, list[str]]:
        gpus = min(1.0, self._placement.num_gpus)
        shares = {task.name: gpus if task.name in GPU_TASKS else 0.0 for task in tasks}
        sweep = tasks[0].sweep
        should_stop = polled_stop(sweep.store, sweep.spec.name)
        return run_tasks(tasks, self._hosts, shares, should_stop)

    def run_shards(self, stages: Sequence[ShardStage], num_shards: int) -> dict[str, list[str]]:
        names = [stage.name for stage in stages]

        def size(position: int) -> int:  # called repeatedly, because nodes may join
            return self._placement.pool_sizes(names, num_shards)[position]

        pools = [
            stage_pool(stage, partial(size, position), self._placement.share(stage.name))
            for position, stage in enumerate(stages)
        ]
        with self._demand.of(names, num_shards):
            return run_shards(pools, stages, num_shards, self._hosts)

    def run_trials(self, sweep: Sweep, trials: Sequence[Trial]) -> None:
        from prefsweep.orchestrator.execution.tuning import tune_trials

        gpus, largest = self._shares(sweep, trials)
        if stop_requested(sweep.store, sweep.spec.name):
            return
        memory = 0.0
        if not gpus:
            needed = cpu_memory(sweep.spec, *policy_size(sweep), largest)
            nodes, cpus = self._placement.nodes, self._resources.cpus_per_worker
            memory = reserved_memory(needed, nodes, cpus)
        self._hosts.end_idle()
        grouping = Grouping(largest, max(1, self._placement.fitting(gpus)))
        tune_trials(sweep, trials, gpus, memory, self._members, grouping)

    def close(self) -> None:
        self._ray.shutdown()

    def _shares(self, sweep: Sweep, trials: Sequence[Trial]) -> tuple[float, int]:
        """GPUs of a group of trials, and its largest size."""
        fuse = sweep.spec.training.fuse
        whole = self._placement.share("trials")
        if isinstance(fuse, int):
            return whole, fuse
        if fuse == "auto" and (size := self._probed_size(sweep, trials, whole)) > 1:
            return whole, size
        return self._gpus_per_trial(sweep, trials[0]), 1

    def _probed_size(self, sweep: Sweep, trials: Sequence[Trial], gpus: float) -> int:
        """The size of group that a probe on a GPU finds to pay; 1 without GPUs."""
        if not gpus:
            return 1
        alike = largest_set(sweep, trials)
        if len(alike) < 2 or len(kinds := gpu_types()) > 1:
            return 1
        probe = self._group_probe(sweep, alike, "+".join(kinds))
        should_stop = polled_stop(sweep.store, sweep.spec.name)
        run_tasks([probe], self._hosts, {probe.name: gpus}, should_stop)
        return 1 if should_stop() else size_that_pays(probe, gpus)

    def _gpus_per_trial(self, sweep: Sweep, trial: Trial) -> float:
        """The spec's share of a GPU, or for `auto` the share that a probe finds."""
        whole = self._placement.share("trials")
        if self._resources.gpus_per_trial != "auto" or not whole:
            return whole
        if len(kinds := gpu_types()) > 1:  # a probe would only measure one of them
            note = "gpus_per_trial: %g, because the GPUs differ (%s); set it to share a GPU"
            log.info(note, whole, ", ".join(kinds))
            return whole
        probe = self._probe(sweep, trial.spec, "+".join(kinds))
        should_stop = polled_stop(sweep.store, sweep.spec.name)
        run_tasks([probe], self._hosts, {probe.name: whole}, should_stop)
        if should_stop():
            return whole
        memory = probe.found()
        share = trial_share(memory)
        gib = 2**30
        log.info(
            "gpus_per_trial: %g (a trial takes %.1f GiB, %.1f of %.1f GiB are free)",
            *(share, memory.peak / gib, memory.free / gib, memory.total / gib),
        )
        return share
