"""Shares of a cluster: how many workers fit, what grows, and what is refused."""

import pytest

from prefsweep.orchestrator.execution import placement
from prefsweep.orchestrator.execution.placement import NodeSize, Placement, resources_of
from prefsweep.sweeps.errors import ClusterError
from prefsweep.sweeps.load import load_spec
from prefsweep.sweeps.spec import ResourcesSpec


def on(*nodes: NodeSize, **fields: object) -> Placement:
    return Placement(ResourcesSpec.model_validate(fields), lambda: nodes)


def test_shares_fit_on_single_cards_of_single_nodes() -> None:
    nodes = (NodeSize(cpus=8, gpus=2), NodeSize(cpus=1, gpus=2), NodeSize(cpus=16))
    assert on(*nodes).fitting(0.0) == 25
    assert on(*nodes).fitting(1.0) == 2 + 1
    assert on(*nodes).fitting(0.5) == 4 + 1
    assert on(*nodes).fitting(0.4) == 4 + 1, "two of 0.4 to a card, not five to two cards"
    assert on(*nodes, cpus_per_worker=4).fitting(0.5) == 2


def test_auto_fills_the_cluster_and_keeps_a_quarter_for_scoring() -> None:
    assert on(NodeSize(cpus=8)).pool_sizes(["completions", "scores"], 100) == [6, 2]
    assert on(NodeSize(cpus=8, gpus=4)).pool_sizes(["completions", "scores"], 100) == [3, 1]
    assert on(NodeSize(cpus=8)).pool_sizes(["reference"], 100) == [8]
    assert on(NodeSize(cpus=8)).pool_sizes(["scores"], 100) == [8], "all is generated already"
    assert on(NodeSize(cpus=8)).pool_sizes(["reference"], 3) == [3], "no more than there is to do"
    assert on(NodeSize(cpus=8), num_generators=2).pool_sizes(["completions"], 100) == [2]


def test_scorers_without_a_model_leave_the_gpus_to_generators() -> None:
    words = {"gpus_per_scorer": 0.0}
    both = ["completions", "scores"]
    assert on(NodeSize(cpus=64, gpus=8), **words).pool_sizes(both, 100) == [8, 2]
    assert on(NodeSize(cpus=8, gpus=8), **words).pool_sizes(both, 100) == [6, 2]
    assert on(NodeSize(cpus=16, gpus=1), **words).pool_sizes(both, 100) == [1, 1]


def test_auto_gives_scorers_a_gpu_only_for_a_classifier() -> None:
    def share(*overrides: str) -> float:
        spec = load_spec("quickstart", list(overrides))
        return Placement(resources_of(spec), lambda: [NodeSize(cpus=8, gpus=2)]).share("scores")

    function = "reward={type: callable, function: 'package.module:f'}"
    assert share() == 1.0
    assert share("reward={type: vader}") == 0.0
    assert share(function) == 0.0
    assert share(function, "resources.gpus_per_scorer=0.5") == 0.5


def test_a_node_that_joins_makes_pools_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "LOOK_S", 0.0)
    nodes = [NodeSize(cpus=2)]
    growing = Placement(ResourcesSpec(), lambda: nodes)
    assert growing.pool_sizes(["reference"], 100) == [2]
    nodes.append(NodeSize(cpus=3))
    assert growing.pool_sizes(["reference"], 100) == [5]


def test_what_fits_on_no_node_is_refused_with_what_there_is() -> None:
    with pytest.raises(ClusterError, match="cpus_per_worker=4, but no node has more than 2 of the"):
        on(NodeSize(cpus=2), NodeSize(cpus=2), cpus_per_worker=4).require(["trials"])
    with pytest.raises(ClusterError, match="gpus_per_trial=1, but the cluster has 0 GPUs"):
        on(NodeSize(cpus=2), gpus_per_trial=1).require(["reference", "trials"])
    on(NodeSize(cpus=2, gpus=1), gpus_per_trial=0.5).require(["trials"])


def test_an_autoscaler_is_given_the_stated_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "LOOK_S", 0.0)
    seen = iter([[NodeSize(cpus=1)], [NodeSize(cpus=1)]])
    patient = Placement(
        ResourcesSpec(cpus_per_worker=2, wait_for_nodes_s=60),
        lambda: next(seen, [NodeSize(cpus=2)]),
    )
    patient.require(["trials"])
    assert patient.num_cpus == 2


def test_a_stop_ends_the_wait_for_nodes() -> None:
    looks: list[int] = []

    def should_stop() -> bool:
        looks.append(1)
        return len(looks) == 2

    on(NodeSize(cpus=2), cpus_per_worker=4, wait_for_nodes_s=1e6).require(["trials"], should_stop)
    assert len(looks) == 2
