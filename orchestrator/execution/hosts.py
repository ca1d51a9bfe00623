"""Worker processes that outlive a stage: starting one and importing torch takes seconds.

A host is a Ray actor with its share of CPUs and GPUs. It runs tasks, and shards of one stage after
the other; the model of a stage stays loaded from its first shard to its last.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefsweep.orchestrator.execution.membership import Members
from prefsweep.orchestrator.execution.placement import NodeSize, nodes_line, ray_nodes
from prefsweep.orchestrator.execution.presence import LOOK_S, Presence
from prefsweep.orchestrator.tasks.shards import Searchable, ShardStage, run_shard
from prefsweep.orchestrator.tasks.stages import Task
from prefsweep.orchestrator.tasks.worker import hide_gpus_of_others, set_up_worker
from prefsweep.sweeps.errors import StageError

START_S = 15.0
"""A process that is not there by then most likely waits for room."""


@dataclass(frozen=True, eq=False)
class Host:
    """A handle on one worker process."""

    actor: Any
    num_gpus: float
    up: Any = None
    """A Ray reference that is there once the process is."""
    started_s: float = 0.0
    """When it was asked for, on the monotonic clock."""


class Hosts:
    """The hosts of a run: leased to a stage, given back, leased again."""

    def __init__(
        self,
        *,
        num_cpus: float,
        threads: int,
        members: Members | None = None,
        patience_s: float,
        max_stall_s: float,
    ) -> None:
        """`members` are the nodes that may have hosts; None is all of them.

        A cluster without any node is waited for as long as `patience_s`, one without room for any
        of the hosts that are leased as long as `max_stall_s`.
        """
        self._num_cpus, self._threads, self._members = num_cpus, threads, members
        self._presence, self._max_stall_s = Presence(patience_s), max_stall_s
        self._looked_s = self._placed_s = time.monotonic()
        """When it was last looked for hosts without a place, and when last one had a place."""
        self._idle: list[Host] = []
        self._leased: list[Host] = []

    def has_room(self, num_gpus: float) -> bool:
        """Whether one more host with that share of a GPU fits beside those that are leased.

        One that does not would come up only when another ends; better use that one's process
        again. Where none is leased there is nothing to wait for but the cluster.
        """
        return not self._leased or self._fits(num_gpus, beside=self._leased)

    def lease(self, num_gpus: float) -> Host:
        """A host with that share of a GPU: an idle one, or a new one (which may wait for room)."""
        same = [host for host in self._idle if host.num_gpus == num_gpus]
        host = same[0] if same else self._start(num_gpus)
        if same:
            self._idle.remove(host)
        self._leased.append(host)
        return host

    def give_back(self, host: Host) -> None:
        """The host is idle again; it forgets what it has loaded."""
        self._leased.remove(host)
        if not self._fits(host.num_gpus, beside=[*self._leased, *self._idle]):
            _end(host)  # another one waits for its CPUs or its GPU
        else:
            host.actor.forget.remote()
            self._idle.append(host)

    def lost(self, host: Host) -> None:
        """The host's process has died, or is ended in the middle of its work."""
        self._leased.remove(host)
        _end(host)

    def refused(self, host: Host, error: Exception) -> bool:
        """Whether a host has not worked because of its node, which then gets none any more."""
        if self._members is None or not self._members.keep_off(error):
            return False
        self.lost(host)
        return True

    def is_up(self, host: Host) -> bool:
        """Whether the host's process is there (or was: then what it works on says so)."""
        return not self._without_place([host])

    def check(self) -> None:
        """Raises StageError once there is no node, or for long no room for any leased host."""
        self._presence.check()
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
                f"for {waited_s:.0f} s no worker has found a place: one asks for "
                f"{self._num_cpus:g} CPUs and {gpus:g} GPUs, and {nodes_line(self._nodes())}. It "
                "has lost nodes, or others use it (`ray status` says who); run the same command "
                "again when there is room, it goes on from there (retries.max_stall_s is how long "
                "it waits)"
            )

    def make_room(self) -> None:
        """End idle hosts where a leased one does not come up: it waits for what they hold.

        That happens where a node is lost: until Ray has noticed, it counts as room.
        """
        now_s = time.monotonic()
        late = [host for host in self._leased if now_s - host.started_s > START_S]
        if self._idle and self._without_place(late):
            self.end_idle()

    def end_idle(self) -> None:
        """End the idle hosts, and with them their claim on CPUs and GPUs."""
        for host in self._idle:
            _end(host)
        self._idle = []

    def _without_place(self, hosts: Sequence[Host]) -> list[Host]:
        """Those whose process is not there (yet)."""
        if not hosts:
            return []
        import ray

        waiting = ray.wait([host.up for host in hosts], num_returns=len(hosts), timeout=0)[1]
        return [host for host in hosts if host.up in waiting]

    def _nodes(self) -> list[NodeSize]:
        return ray_nodes(frozenset() if self._members is None else self._members.kept_off)

    def _fits(self, num_gpus: float, *, beside: Sequence[Host]) -> bool:
        """Whether the nodes of now have the CPUs and GPUs of a host and of those beside it.

        Counted over all nodes: that shares do not fill single cards shows when a host is late.
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
    """What runs in the worker process."""

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
        """Make and publish a shard."""
        self._load(stage)
        run_shard(stage, self._worker, index)

    def try_prompts(self, stage: Searchable, index: int, prompt_ids: Sequence[str]) -> None:
        """Do the work on some prompts of an item, to see whether this process survives it.

        Without any, only load what the stage needs.
        """
        self._load(stage)
        if prompt_ids:
            stage.work(self._worker, index, prompt_ids)

    def _load(self, stage: Searchable) -> None:
        """What the stage needs is loaded at its first shard."""
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
        """Drop the loaded model."""
        self._worker, self._stage = None, ""
