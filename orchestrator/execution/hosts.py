"""Worker processes that are reused across stages, because starting one takes seconds.

A host is a Ray actor with a share of CPUs and GPUs. It runs tasks, and shards of one stage after
the other; a stage's model stays loaded from its first shard to its last.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefsweep.orchestrator.execution.membership import Members
from prefsweep.orchestrator.execution.node_watch import LOOK_S, NodeWatch
from prefsweep.orchestrator.execution.placement import NodeSize, nodes_line, ray_nodes
from prefsweep.orchestrator.tasks.shards import BisectableTask, ShardStage, run_shard
from prefsweep.orchestrator.tasks.stages import Task
from prefsweep.orchestrator.tasks.worker import hide_gpus_of_others, set_up_worker
from prefsweep.sweeps.errors import StageError

START_S = 15.0
"""A process that has not started by then is most likely waiting for resources."""


@dataclass(frozen=True, eq=False)
class Host:
    """A handle on one worker process."""

    actor: Any
    num_gpus: float
    up: Any = None
    """A Ray reference that resolves once the process has started."""
    started_s: float = 0.0
    """When the process was requested, in seconds of the monotonic clock."""


class Hosts:
    """The hosts of a run: a stage leases them and gives them back."""

    def __init__(
        self,
        *,
        num_cpus: float,
        threads: int,
        members: Members | None = None,
        patience_s: float,
        max_stall_s: float,
    ) -> None:
        """`members` are the nodes that may run hosts; None allows all nodes.

        `check` fails after `patience_s` seconds without any node, and after `max_stall_s` seconds
        in which Ray placed none of the leased hosts.
        """
        self._num_cpus, self._threads, self._members = num_cpus, threads, members
        self._node_watch, self._max_stall_s = NodeWatch(patience_s), max_stall_s
        self._looked_s = self._placed_s = time.monotonic()
        """When `check` last looked, and when it last saw a host that Ray had placed."""
        self._idle: list[Host] = []
        self._leased: list[Host] = []

    def has_room(self, num_gpus: float) -> bool:
        """Whether one more host with that share of a GPU fits beside the leased ones.

        A host that does not fit would start only when another ends; reusing that one is faster.
        True if no host is leased: then only the cluster itself can make room.
        """
        return not self._leased or self._fits(num_gpus, beside=self._leased)

    def lease(self, num_gpus: float) -> Host:
        """A host with that share of a GPU: an idle one, or a new one that Ray will place."""
        same = [host for host in self._idle if host.num_gpus == num_gpus]
        host = same[0] if same else self._start(num_gpus)
        if same:
            self._idle.remove(host)
        self._leased.append(host)
        return host

    def give_back(self, host: Host) -> None:
        """Mark the host as idle and unload its model."""
        self._leased.remove(host)
        if not self._fits(host.num_gpus, beside=[*self._leased, *self._idle]):
            _end(host)  # another host is waiting for its CPUs or its GPU
        else:
            host.actor.forget.remote()
            self._idle.append(host)

    def lost(self, host: Host) -> None:
        """Remove a host whose process has died, and kill it if it has not."""
        self._leased.remove(host)
        _end(host)

    def refused(self, host: Host, error: Exception) -> bool:
        """Whether the host refused work because of its node, which then gets no more hosts."""
        if self._members is None or not self._members.keep_off(error):
            return False
        self.lost(host)
        return True

    def is_up(self, host: Host) -> bool:
        """Whether Ray has placed the host's process. It may have died since."""
        return not self._without_place([host])

    def check(self) -> None:
        """Raises StageError if the cluster has no node, or has not placed any leased host."""
        self._node_watch.check()
        now_s = time.monotonic()
        if not self._leased or now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        if len(self._without_place(self._leased)) < len(self._leased):
            self._placed_s = now_s
            return
        waited_s = now_s - max(self._placed_s, min(host.started_s for host in self._leased))
        if waited_s >= self._max_stall_s:
            gpus = max(host.num_gpus for host in self._leased)
            raise StageError(
                f"no worker could be placed for {waited_s:.0f} s: one needs "
                f"{self._num_cpus:g} CPUs and {gpus:g} GPUs, and {nodes_line(self._nodes())}. The "
                "cluster has lost nodes, or others are using it (see `ray status`). Run the same "
                "command again when there is room; it resumes from there. retries.max_stall_s sets "
                "how long to wait"
            )

    def make_room(self) -> None:
        """Kill idle hosts if a leased one does not start: it is waiting for their resources.

        This happens after a node is lost, because Ray still counts its resources for a while.
        """
        now_s = time.monotonic()
        late = [host for host in self._leased if now_s - host.started_s > START_S]
        if self._idle and self._without_place(late):
            self.end_idle()

    def end_idle(self) -> None:
        """Kill the idle hosts and so free their CPUs and GPUs."""
        for host in self._idle:
            _end(host)
        self._idle = []

    def _without_place(self, hosts: Sequence[Host]) -> list[Host]:
        """Those of `hosts` whose process Ray has not placed yet."""
        if not hosts:
            return []
        import ray

        waiting = ray.wait([host.up for host in hosts], num_returns=len(hosts), timeout=0)[1]
        return [host for host in hosts if host.up in waiting]

    def _nodes(self) -> list[NodeSize]:
        return ray_nodes(frozenset() if self._members is None else self._members.kept_off)

    def _fits(self, num_gpus: float, *, beside: Sequence[Host]) -> bool:
        """Whether the current nodes have the CPUs and GPUs of a host and of those `beside` it.

        Counts totals over all nodes. If the shares do not fit single cards, the host starts late
        and `make_room` reacts.
        """
        nodes = self._nodes()
        gpus = num_gpus + sum(host.num_gpus for host in beside)
        enough_gpus = not num_gpus or gpus <= sum(node.gpus for node in nodes) + 1e-6
        cpus = self._num_cpus * (len(beside) + 1)
        return enough_gpus and cpus <= sum(node.cpus for node in nodes)

    def _start(self, num_gpus: float) -> Host:
        import ray

        self.end_idle()  # idle hosts of another kind may hold what the new one needs
        options: dict[str, Any] = {"num_cpus": self._num_cpus, "num_gpus": num_gpus}
        if self._members is not None and (selector := self._members.selector()):
            options["label_selector"] = selector
        worker: Any = ray.remote(**options)(_HostActor)
        actor = worker.remote(self._threads, self._members)
        return Host(actor, num_gpus, actor.forget.remote(), time.monotonic())


def _end(host: Host) -> None:
    import ray

    ray.kill(host.actor)


class _HostActor:
    """The actor that runs in the worker process."""

    def __init__(self, threads: int, members: Members | None) -> None:
        hide_gpus_of_others()
        self._threads, self._members = threads, members
        self._stage = ""
        self._worker: Any = None

    def run_task(self, task: Task) -> None:
        """Run a task."""
        self._set_up()
        task.sweep.store.delete_abandoned()
        task.run()

    def run_shard(self, stage: ShardStage, index: int) -> None:
        """Compute and publish a shard."""
        self._load(stage)
        run_shard(stage, self._worker, index)

    def try_prompts(self, stage: BisectableTask, index: int, prompt_ids: Sequence[str]) -> None:
        """Process some prompts of an item to see whether this process survives; publish nothing.

        With no prompts, only load the model.
        """
        self._load(stage)
        if prompt_ids:
            stage.work(self._worker, index, prompt_ids)

    def _load(self, stage: BisectableTask) -> None:
        """Load the stage's model at its first shard."""
        self._set_up()
        if self._stage != stage.name:
            self.forget()
            stage.sweep.store.delete_abandoned()
            self._worker, self._stage = stage.load(), stage.name

    def _set_up(self) -> None:
        if self._members is not None:
            self._members.check()
        set_up_worker(self._threads)

    def forget(self) -> None:
        """Unload the model."""
        self._worker, self._stage = None, ""
