"""Hosts that wait for room get it from idle ones, and from nobody else (no Ray)."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from prefsweep.orchestrator.machines import hosts as module
from prefsweep.orchestrator.machines.hosts import START_S, Hosts


class Cluster:
    """Ray, as far as hosts see it: a process comes up where there is a CPU for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cpus: int) -> None:
        self.cpus, self.counted = cpus, cpus
        self.actors: list[Any] = []
        self.now_s = 100.0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        monkeypatch.setattr(module, "ray_nodes", lambda _: [SimpleNamespace(cpus=self.counted)])
        monkeypatch.setattr(ray, "remote", lambda **options: lambda actor: self)
        monkeypatch.setattr(ray, "wait", self.wait)
        monkeypatch.setattr(ray, "kill", self.actors.remove)

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


def test_a_host_that_does_not_come_up_gets_the_room_of_idle_ones(cluster: Cluster) -> None:
    hosts = Hosts(num_cpus=1, threads=1)
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
    hosts = Hosts(num_cpus=1, threads=1)
    idle, _ = hosts.lease(0.0), hosts.lease(0.0)
    hosts.give_back(idle)
    cluster.now_s += START_S + 1
    hosts.make_room()
    assert len(cluster.actors) == 2
    assert hosts.lease(0.0) is idle
