"""Nodes and heads that die, and clusters that are too small: on a cluster of several raylets."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefsweep.orchestrator.state.sweep import Sweep

from .conftest import Start
from .harness import (
    Fault,
    assert_nothing_is_redone,
    assert_results,
    assert_whole,
    fault_environment,
    finished,
    store_before,
    words,
)

SOONER = {"RAY_health_check_period_ms": "1000"}
"""A node is dead that does not answer five times in a row; Ray asks every three seconds."""


class Nodes:
    """A cluster on this machine: a head that works on nothing, and nodes of one core each."""

    def __init__(self, num_nodes: int) -> None:
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        for _ in range(num_nodes):
            self._cluster.add_node(num_cpus=1)
        self._cluster.wait_for_nodes()

    @property
    def address(self) -> str:
        return self._cluster.address

    def lose_node(self, raylet: int) -> None:
        """End, without a word, the node of that raylet."""
        for node in list(self._cluster.worker_nodes):
            if node.all_processes["raylet"][0].process.pid == raylet:
                self._cluster.remove_node(node, allow_graceful=False)
                return
        raise AssertionError(f"{raylet} is of none of the nodes")

    def lose_head(self) -> None:
        self._cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


Cluster = Callable[..., Nodes]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Starts a cluster whose workers meet faults; they have the environment of this process."""
    clusters: list[Nodes] = []

    def start_cluster(num_nodes: int, *faults: Fault) -> Nodes:
        folder = tmp_path / f"faults{len(clusters)}"
        folder.mkdir()
        for name, value in (fault_environment(folder, faults) | SOONER).items():
            monkeypatch.setenv(name, value)
        clusters.append(Nodes(num_nodes))
        return clusters[-1]

    yield start_cluster
    for nodes in clusters:
        nodes.close()


def held(folder: Path, *, raylet: bool = False) -> list[int]:
    """Processes that a fault holds, or the raylets that these are workers of."""
    return [int(path.name.split("-")[-1 - raylet]) for path in folder.glob("held-*")]


@pytest.mark.parametrize("stage", ["completions", "training"])
def test_a_lost_node_costs_its_unfinished_work_only(
    stage: str, undisturbed: Sweep, start: Start, cluster: Cluster, tmp_path: Path
) -> None:
    storage = store_before(stage, undisturbed, tmp_path / "store")
    nodes = cluster(2, Fault(stage, after=1))
    run = start(storage, *words("--address", nodes.address))
    victim = run.until(lambda: held(tmp_path / "faults0", raylet=True))[0]
    before = finished(storage)
    nodes.lose_node(victim)
    (tmp_path / "faults0" / "go").touch()
    assert run.wait() == 0, run.output
    assert_nothing_is_redone(before)
    assert_whole(storage)
    assert_results(storage, undisturbed)


@pytest.mark.parametrize("stage", ["completions", "training"])
def test_a_lost_head_ends_the_driver_with_a_message_and_a_new_cluster_goes_on(
    stage: str, undisturbed: Sweep, start: Start, cluster: Cluster, tmp_path: Path
) -> None:
    storage = store_before(stage, undisturbed, tmp_path / "store")
    nodes = cluster(1, Fault(stage, after=1))
    sooner = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}  # Ray waits a minute
    run = start(storage, *words("--address", nodes.address), env=sooner)
    run.until(lambda: held(tmp_path / "faults0"))
    before = finished(storage)
    nodes.lose_head()
    assert run.wait() not in (0, 130), run.output
    # Ray may end the process before we can say anything: then the message is Ray's.
    assert "GCS may have been killed" in run.output or "error: " in run.output
    assert "Traceback" not in run.output
    nodes.close()
    again = start(storage, *words("--address", cluster(1).address))
    assert again.wait() == 0, again.output
    assert_nothing_is_redone(before)
    assert_whole(storage)
    assert_results(storage, undisturbed)


@pytest.mark.parametrize("stage", ["completions", "training"])
def test_the_only_node_lost_ends_the_driver_with_a_message_and_the_command_goes_on(
    stage: str, undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    """A Ray of the driver's own whose raylet is killed: no other node will ever come."""
    storage = store_before(stage, undisturbed, tmp_path / "store")
    run = start(storage, *words(), faults=[Fault(stage, after=1)])
    run.held()
    before = finished(storage)
    for raylet in run.children("raylet/raylet"):
        raylet.kill()  # its workers end when they notice
    assert run.wait() == 1, run.output
    assert "Traceback" not in run.output
    # Ray may end the process before we can say anything: then the message is Ray's
    assert "Ray has had no node for" in run.output or "Raylet is terminated" in run.output
    run.clean_up()
    again = start(storage, *words("--inline"))
    assert again.wait() == 0, again.output
    assert_nothing_is_redone(before)
    assert_whole(storage)
    assert_results(storage, undisturbed)


@pytest.mark.parametrize(
    ("override", "asked"),
    [
        ("resources.cpus_per_worker=999", "cpus_per_worker=999"),  # others: test_placement.py
        ("resources.gpus_per_trial=1", "gpus_per_trial=1"),
    ],
)
def test_a_cluster_too_small_is_refused_at_once_with_what_it_has(
    override: str, asked: str, undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before("completions", undisturbed, tmp_path / "store")
    before = finished(storage)
    run = start(storage, *words(override))
    assert run.wait() == 2, run.output
    message = " ".join(run.output.split())
    assert asked in message
    assert "the cluster has" in message
    assert "Traceback" not in message
    assert finished(storage) == before
