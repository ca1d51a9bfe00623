"""A cluster without a node ends the run, but only after a while."""

import time

import pytest

from prefsweep.orchestrator.execution.node_watch import NodeWatch
from prefsweep.orchestrator.execution.placement import NodeSize
from prefsweep.sweeps.errors import StageError


def test_a_cluster_that_has_no_node_for_too_long_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s, nodes = 1000.0, [NodeSize(2.0)]
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    node_watch = NodeWatch(10.0, lambda: nodes)

    def after(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        node_watch.check()

    after(100.0)
    nodes[:] = [NodeSize(0.0)]  # a head that works on nothing
    after(9.0)
    nodes[:] = [NodeSize(0.0), NodeSize(1.0)]  # another one has come
    after(9.0)
    nodes.clear()
    after(3600.0)  # other work, in which nobody looked
    after(9.0)
    assert node_watch.lost is None
    with pytest.raises(StageError, match="Ray has had no node for 12 s"):
        after(3.0)
    assert node_watch.lost is not None
