"""Hosts that wait for room get it from idle ones, and from nobody else (no Ray)."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from prefsweep.orchestrator.execution import hosts as module
from prefsweep.orchestrator.execution.hosts import START_S, Hosts
from prefsweep.orchestrator.execution.placement import NodeSize
from prefsweep.sweeps.errors import StageError


class Cluster:
    """Ray, as far as hosts see it: a process comes up where there is a CPU for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cpus: int) -> None:
        self.cpus, self.counted, self.gpus = cpus, cpus, 0.0
        self.actors: list[Any] = []
        self.now_s = 100.0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        monkeypatch.setattr(module, "ray_nodes", self.nodes)
        monkeypatch.setattr(ray, "remote", lambda **options: lambda actor: self)
        monkeypatch.setattr(ray, "wait", self.wait)
        monkeypatch.setattr(ray, "kill", self.actors.remove)

    def nodes(self, _: object) -> list[NodeSize]:
        return [NodeSize(self.counted, self.gpus)]

    def remote(self, *arguments: object) -> Any:
        actor = SimpleNamespace()
        actor.forget = SimpleNamespace(remote=lambda: actor)
        self.actors.append(actor)
        return actor

    def wait(self, actors: list[Any], **_: object) -> tuple[list[Any], list[Any]]:
        up = self.actors[: self.cpus]
        return [a for a in actors if a in up], [a for a in actors if a not in up]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch, cpus=2)


def some_hosts() -> Hosts:
    return Hosts(num_cpus=1, threads=1, patience_s=10.0, max_stall_s=600.0)


def test_hosts_that_find_no_place_for_too_long_end_the_run(cluster: Cluster) -> None:
    hosts = some_hosts()
    cluster.now_s += 3600.0  # others have worked, trials perhaps
    running = hosts.lease(0.0)

    def after(seconds: float) -> None:
        cluster.now_s += seconds
        hosts.check()

    after(3600.0)  # it works
    hosts.give_back(running)
    cluster.cpus, cluster.counted = 0, 4  # Ray counts what is lost, or others have it
    hosts.lease(1.0)
    after(599.0)
    with pytest.raises(StageError, match=r"one needs 1 CPUs and 1 GPUs.*1 nodes \(4 CPUs with"):
        after(3.0)


def test_while_one_host_works_others_may_wait_for_a_place(cluster: Cluster) -> None:
    hosts = some_hosts()
    cluster.cpus = 1
    working, waiting = hosts.lease(0.0), hosts.lease(0.0)
    assert hosts.is_up(working) and not hosts.is_up(waiting)
    cluster.now_s += 3600.0
    hosts.check()


def test_a_host_that_does_not_come_up_gets_the_room_of_idle_ones(cluster: Cluster) -> None:
    hosts = some_hosts()
    generators = [hosts.lease(0.0) for _ in range(2)]
    cluster.counted = 3  # Ray still counts a node that has gone
    waiting = hosts.lease(0.0)
    for host in generators:
        hosts.give_back(host)
    hosts.make_room()
    assert len(cluster.actors) == 3, "it may be about to come up"
    cluster.now_s += START_S + 1
    hosts.make_room()
    assert cluster.actors == [waiting.actor]


def test_while_all_that_are_leased_work_idle_ones_stay(cluster: Cluster) -> None:
    hosts = some_hosts()
    idle, _ = hosts.lease(0.0), hosts.lease(0.0)
    hosts.give_back(idle)
    cluster.now_s += START_S + 1
    hosts.make_room()
    assert len(cluster.actors) == 2
    assert hosts.lease(0.0) is idle


def test_there_is_room_for_what_the_leased_leave_of_the_gpus(cluster: Cluster) -> None:
    cluster.counted, cluster.gpus = 8, 1.0
    hosts = some_hosts()
    assert hosts.has_room(2.0), "nobody ends for it; it waits for a node"
    generator = hosts.lease(0.6)
    assert hosts.has_room(0.4)
    assert not hosts.has_room(0.6)
    assert hosts.has_room(0.0), "a scorer without a model needs none"
    hosts.give_back(generator)
    assert hosts.has_room(1.0), "idle hosts go when a new one starts"
    cluster.gpus = 2.0  # a node joins
    hosts.lease(1.0)
    assert hosts.has_room(1.0)


def test_there_is_room_for_what_the_leased_leave_of_the_cpus(cluster: Cluster) -> None:
    hosts = some_hosts()
    hosts.lease(0.0)
    assert hosts.has_room(0.0)
    hosts.lease(0.0)
    assert not hosts.has_room(0.0)


def test_who_has_done_its_work_keeps_no_gpu_that_another_waits_for(cluster: Cluster) -> None:
    cluster.counted, cluster.gpus = 8, 2.0
    hosts = some_hosts()
    first, waiting = hosts.lease(1.0), hosts.lease(1.0)
    cluster.gpus = 1.0  # a node is lost
    hosts.give_back(first)
    assert cluster.actors == [waiting.actor]


def test_the_next_stage_has_the_process_of_the_one_before(cluster: Cluster) -> None:
    cluster.counted, cluster.gpus = 8, 1.0
    hosts = some_hosts()
    policy = hosts.lease(1.0)
    hosts.give_back(policy)
    assert hosts.lease(1.0) is policy
