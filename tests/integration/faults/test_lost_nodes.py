"""Whole machines that go or come, on a cluster of real processes (`ray start`): a node that is
killed with all its processes, and one that joins and is not like the others."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prefsweep.orchestrator.state.sweep import Sweep

from ..ray_cluster import AUTH, RayNodes, dependencies_only, ray_nodes
from .conftest import Start
from .harness import (
    INJECT,
    Fault,
    assert_nothing_is_redone,
    assert_results,
    assert_whole,
    fault_environment,
    finished,
    store_before,
    words,
)
from .test_cluster import SOONER, held

COLD = {"PREFSWEEP_TEST_WARM": ""}
"""A fork would have neither the other disk nor the other packages."""
STEPS = 5
"""Steps of a trial to let pass: it has checkpoints by then."""


@contextmanager
def nodes_that_meet(fault: Fault, folder: Path) -> Iterator[RayNodes]:
    """Nodes whose workers meet a fault, in `folder`/faults, and start warm."""
    (folder / "faults").mkdir()
    environment = fault_environment(folder / "faults", [fault]) | {"PYTHONPATH": str(INJECT)}
    names = ("PREFSWEEP_TEST_FAULTS", "PREFSWEEP_TEST_WARM", "PYTHONPATH")
    meeting = {name: environment[name] for name in names} | SOONER
    with ray_nodes(folder / "nodes", meeting) as nodes:
        nodes.start("head")
        nodes.wait(1)
        yield nodes


def all_held(folder: Path, num: int) -> list[int]:
    """The raylets of the held processes, once there are so many."""
    found = held(folder, raylet=True)
    return found if len(found) == num else []


@pytest.mark.parametrize("stage", ["completions", "training"])
def test_a_node_that_is_killed_at_work_costs_its_unfinished_work_only(
    stage: str, undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before(stage, undisturbed, tmp_path / "store")
    with nodes_that_meet(
        Fault(stage, times=2, after=STEPS * (stage == "training")), tmp_path
    ) as nodes:
        for num, name in enumerate(("left", "right"), start=2):
            nodes.start(name)
            nodes.wait(num)
        run = start(storage, *words("--address", nodes.address), env=AUTH)
        held_here = tmp_path / "faults"
        raylets = run.until(lambda: all_held(held_here, num=2))
        victims = {nodes.node_of(raylet) for raylet in raylets} - {"head"}
        before = finished(storage)
        nodes.kill(victims.pop())
        (held_here / "go").touch()
        assert run.wait() == 0, run.output
    assert "Traceback" not in run.output
    assert_nothing_is_redone(before)
    assert_whole(storage)
    assert_results(storage, undisturbed)


@pytest.mark.parametrize(
    ("stage", "odd", "said"),
    [
        ("completions", "versions", "has other versions than the driver: trl 0.9.0 (driver 1.16"),
        ("training", "versions", "has other versions than the driver: trl 0.9.0 (driver 1.16"),
        ("completions", "disk", "it does not see a file that the driver wrote there"),
    ],
)
def test_a_node_that_joins_and_is_not_like_the_driver_is_named_and_gets_no_work(
    stage: str, odd: str, said: str, undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    if odd == "disk" and subprocess.run(["unshare", "--mount", "true"]).returncode:
        pytest.skip("a node with a disk of its own needs root")
    storage = store_before(stage, undisturbed, tmp_path / "store")
    other = dependencies_only(tmp_path / "other", {"trl": "0.9.0"})
    something_done = STEPS if stage == "training" else 1  # which others may go on with
    with nodes_that_meet(Fault(stage, after=something_done), tmp_path) as nodes:
        run = start(storage, *words("--address", nodes.address), env=AUTH)
        run.until(lambda: held(tmp_path / "faults"))  # the head is at work, and more is to do
        if odd == "disk":
            nodes.start("odd", hidden=storage, more=COLD)
        else:
            nodes.start("odd", python=other, more=COLD)
        run.until(lambda: "a node that joined gets no work" in run.output)
        (tmp_path / "faults" / "go").touch()
        assert run.wait() == 0, run.output
    assert said in " ".join(run.output.split())
    assert "Traceback" not in run.output
    assert_whole(storage)
    assert_results(storage, undisturbed)
