"""`run --address` on a cluster that is running: our code travels to nodes that have none of it."""

from pathlib import Path

from prefsweep.orchestrator.state.sweep import Sweep, open_sweep

from .ray_cluster import prefsweep, ray_nodes
from .small import OVERRIDES, content


def test_a_cluster_that_has_nothing_of_ours_makes_what_one_process_makes(
    finished_sweep: Sweep, tmp_path: Path
) -> None:
    with ray_nodes(tmp_path / "nodes") as nodes:
        nodes.start("head")
        nodes.wait(1)
        words = ["--address", "auto", "--storage", "store", "--until", "scores"]
        of_that_node = {"RAY_TMPDIR": str(nodes.temp / "head")}  # where `auto` looks for it
        run = prefsweep(
            *("run", "quickstart", *OVERRIDES, *words), cwd=tmp_path, environment=of_that_node
        )
        output = run.communicate(timeout=300)[0]
    assert run.returncode == 0, output
    attached = open_sweep("small", str(tmp_path / "store"))
    assert content(attached, "scores") == content(finished_sweep, "scores")
