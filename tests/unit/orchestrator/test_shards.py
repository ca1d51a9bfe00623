"""Handing out work: deaths, failures and stops, with hosts that only pretend."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError

from prefsweep.orchestrator.execution.hosts import Host
from prefsweep.orchestrator.execution.scheduler import MAX_DEATHS, Pool, TaskFlow, run_tasks
from prefsweep.orchestrator.execution.scheduler import _drain as drain
from prefsweep.sweeps.errors import DataError, NodeError, StageError


@dataclass
class FakeHosts:
    """Hosts without processes; what becomes of each is written down."""

    leased: int = 0
    given_back: int = 0
    ended: int = 0
    places: int = 1000
    """Hosts that have found a place come up; later ones wait."""

    def is_up(self, host: Host) -> bool:
        return host.started_s <= self.places

    def has_room(self, num_gpus: float) -> bool:
        return True

    def lease(self, num_gpus: float) -> Host:
        self.leased += 1
        method = SimpleNamespace(remote=lambda task: task)
        return Host(SimpleNamespace(run_task=method), num_gpus, started_s=self.leased)

    def give_back(self, host: Host) -> None:
        self.given_back += 1

    def lost(self, host: Host) -> None:
        self.ended += 1

    def check(self) -> None:
        """There is always a node."""

    def make_room(self) -> None:
        pass

    def refused(self, host: Host, error: Any) -> bool:
        self.ended += isinstance(error.cause, NodeError)
        return isinstance(error.cause, NodeError)


@dataclass(eq=False)
class FakeTask:
    """Its own Ray reference; `outcomes` are what its runs raise, None for one that succeeds."""

    name: str
    outcomes: list[Exception | None] = field(default_factory=list[Any])

    def finish(self) -> None:
        outcome = self.outcomes.pop(0)
        if outcome is not None:
            raise outcome


@pytest.fixture(autouse=True)
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(references: list[Any], **_: object) -> tuple[list[Any], list[Any]]:
        return references[:1], references[1:]

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", lambda task: task.finish())


def work(*tasks: FakeTask) -> FakeHosts:
    hosts = FakeHosts()
    run_tasks(tasks, hosts, {task.name: 0.0 for task in tasks})  # pyright: ignore
    return hosts


def died() -> Exception:
    return ActorDiedError()


@pytest.mark.parametrize("death", [died, lambda: OutOfMemoryError("memory monitor")])
def test_a_task_whose_worker_dies_is_run_again(death: Callable[[], Exception]) -> None:
    hosts = work(FakeTask("policy", [death(), death(), None]), FakeTask("reward", [None]))
    assert (hosts.leased, hosts.ended, hosts.given_back) == (4, 2, 2)


def test_a_task_that_ends_too_many_workers_ends_the_run() -> None:
    with pytest.raises(StageError, match=rf"policy: the task killed {MAX_DEATHS} workers"):
        work(FakeTask("policy", [died() for _ in range(MAX_DEATHS)]))


def test_what_a_node_may_not_do_is_handed_out_again_and_counts_as_no_death() -> None:
    refused = RayTaskError("run", "traceback", NodeError("node b has other versions"))
    hosts = work(FakeTask("policy", [*[refused] * (MAX_DEATHS + 1), None]))
    assert (hosts.leased, hosts.given_back) == (MAX_DEATHS + 2, 1)


def test_an_error_comes_back_as_it_was_and_no_host_stays_leased() -> None:
    error = RayTaskError("run", "traceback", DataError("prompts: too few"))
    hosts = FakeHosts()
    tasks = [FakeTask("policy", [error]), FakeTask("reward", [None])]
    with pytest.raises(DataError, match="too few"):
        run_tasks(tasks, hosts, {"policy": 0.0, "reward": 0.0})  # pyright: ignore
    assert hosts.leased == hosts.given_back + hosts.ended == 2


def test_after_a_stop_what_is_in_flight_is_finished_and_nothing_is_handed_out() -> None:
    finished: list[int] = []

    def start(host: Host, item: int) -> FakeTask:
        task = FakeTask(str(item), [None])
        task.finish = lambda: finished.append(item)
        return task

    pools = [Pool("scores", start, lambda: 2, 0.0)]  # pyright: ignore[reportArgumentType]
    pools[0].waiting.extend(range(10))
    hosts = FakeHosts()
    drain(pools, hosts, TaskFlow(pools, []), lambda: len(finished) >= 3)  # pyright: ignore
    assert finished == [0, 1, 2, 3]
    assert hosts.leased == hosts.given_back == 2


def test_after_a_stop_what_waits_for_a_place_is_left_and_what_runs_is_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts, tasks = FakeHosts(places=1), [FakeTask("policy", [None]), FakeTask("reward")]
    looks: list[int] = []

    def should_stop() -> bool:
        looks.append(hosts.leased)
        return len(looks) > 2

    def wait(references: list[Any], **_: object) -> tuple[list[Any], list[Any]]:
        done = [task for task in references if task.outcomes and len(looks) > 2]
        return done[:1], references

    monkeypatch.setattr(ray, "wait", wait)
    gpus = {"policy": 1.0, "reward": 1.0}
    run_tasks(tasks, hosts, gpus, should_stop)  # pyright: ignore[reportArgumentType]
    assert tasks[0].outcomes == [], "its host had a place"
    assert (hosts.leased, hosts.ended, hosts.given_back) == (2, 1, 1)
