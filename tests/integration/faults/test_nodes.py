"""Nodes that come late or do not fit a cluster."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prefsweep.orchestrator.state.sweep import open_sweep
from prefsweep.orchestrator.tasks.shards import Generate, is_missing

from ..ray_cluster import dependencies_only, prefsweep, ray_nodes
from ..small import OVERRIDES

pytestmark = pytest.mark.faults

NUM_SHARDS = 430
LONG = [
    f"prompts.num_train={NUM_SHARDS}",
    "generation.shard_size=1",
    "generation.max_new_tokens=96",
    "generation.num_completions=12",
]


def test_a_node_that_joins_late_gets_shards(tmp_path: Path) -> None:
    storage = tmp_path / "store"
    with ray_nodes(tmp_path / "nodes") as nodes:
        nodes.start("head")
        nodes.wait(1)
        words = ["--address", nodes.address, "--storage", str(storage), "--until", "completions"]
        run = prefsweep("run", "quickstart", *OVERRIDES, *LONG, *words, cwd=tmp_path)

        def wait(what: str, until: Callable[[], bool]) -> None:
            deadline = time.monotonic() + 400
            while not until():
                assert run.poll() is None, run.communicate()[0]
                assert time.monotonic() < deadline, what
                time.sleep(0.5)

        wait("a first shard", lambda: len(made_on(storage)) > 0)
        nodes.start("late")
        wait("shards of the late node", lambda: len(set(made_on(storage))) == 2)
        run.terminate()
        assert run.communicate(timeout=100)[0]


def test_a_node_that_differs_or_does_not_share_the_folder_is_refused_by_name(
    tmp_path: Path,
) -> None:
    storage = tmp_path / "store"
    storage.mkdir()
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("a node with a disk of its own needs root")
    with ray_nodes(tmp_path / "nodes") as nodes:
        nodes.start("head")
        nodes.wait(1)

        def refused() -> str:
            words = ["--address", nodes.address, "--storage", str(storage)]
            run = prefsweep("run", "quickstart", *OVERRIDES, *words, cwd=tmp_path)
            output = run.communicate(timeout=300)[0]
            assert run.returncode == 2, output
            return output

        other = dependencies_only(tmp_path / "other", {"trl": "0.9.0"})
        nodes.start("odd", python=other)
        nodes.wait(2)
        output = refused()
        assert "trl 0.9.0 (driver 1.16" in output
        assert "torch" not in output, "what agrees is not told"
        nodes.kill("odd")
        nodes.wait(1)
        nodes.start("lonely", hidden=storage)
        nodes.wait(2)
        output = refused()
    assert f"--storage {storage} does not work on node" in output
    assert "it does not see a file that the driver wrote there" in output
    left = [*storage.glob("artifacts/policy-*"), *storage.glob("artifacts/preflight-*")]
    assert left == [], "no work was started"


def made_on(storage: Path) -> list[str]:
    """The node of every shard of completions so far."""
    if not (storage / "sweeps" / "small" / "spec.json").exists():
        return []
    sweep = open_sweep("small", str(storage))
    stage = Generate(sweep)
    made = [index for index in range(NUM_SHARDS) if not is_missing(stage, index)]
    manifests = [sweep.store.shard_manifest(sweep.shard(stage.name, index)) for index in made]
    return [manifest.environment["node"] for manifest in manifests if manifest is not None]
