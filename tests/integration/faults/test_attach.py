"""`run --address` on a cluster of three nodes, none of which has prefsweep or the driver's disk."""

import json
from pathlib import Path

from prefsweep.orchestrator.state.sweep import Sweep, open_sweep

from ..ray_cluster import RayNodes, prefsweep
from ..small import OVERRIDES, content

SECRETS = {
    "HF_TOKEN": "hf_tokenthatmaynottravel",
    "WANDB_API_KEY": "wandbkeythatmaynottravel",
    "AWS_SECRET_ACCESS_KEY": "awskeythatmaynottravel",
}
REWARD = """
from pathlib import Path

def length(prompts: list[str], completions: list[str]) -> list[float]:
    assert "HF_HUB_OFFLINE" in __import__("os").environ, "settings of the driver are forwarded"
    return [float(len(text)) for text in completions]
"""


def users_folder(folder: Path) -> list[str]:
    """A user's own files beside the spec; returns the overrides that name them."""
    (folder / "my_reward.py").write_text(REWARD, encoding="utf-8")
    lines = [json.dumps({"text": f"{n} is the film"}) for n in range(30)]
    (folder / "my_prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return [
        "reward={type: callable, function: my_reward:length}",
        "prompts={type: file, path: my_prompts.jsonl, take: {first_tokens: 6}, num_train: 12, "
        "num_eval: 4}",
    ]


def nodes_of(sweep: Sweep) -> set[str]:
    """Ids of the nodes on which shards and trials of a sweep were made."""
    store = sweep.store
    shards = [
        sweep.shard(stage, index) for stage in ("completions", "scores") for index in range(4)
    ]
    made = [store.shard_manifest(path) for path in shards]
    made += [store.manifest(store.trial(trial.trial_id, "weights")) for trial in sweep.trials]
    return {manifest.environment["node"] for manifest in made if manifest is not None}


def test_a_sweep_runs_on_all_nodes_of_a_cluster_that_has_nothing_of_ours(
    three_nodes: RayNodes, tmp_path: Path
) -> None:
    overrides = [o for o in OVERRIDES if not o.startswith(("prompts.", "reward."))]
    run = prefsweep(
        *("run", "quickstart", *overrides, *users_folder(tmp_path)),
        *("--address", three_nodes.address, "--storage", "store"),
        cwd=tmp_path,
        environment=SECRETS,
    )
    output = run.communicate(timeout=400)[0]
    assert run.returncode == 0, output
    sweep = open_sweep("small", str(tmp_path / "store"))
    assert len(nodes_of(sweep)) == 3
    for secret in SECRETS.values():
        assert not holding(secret, three_nodes.temp), secret
        assert not holding(secret, tmp_path / "store"), secret


def test_a_cluster_that_has_nothing_of_ours_makes_what_one_process_makes(
    three_nodes: RayNodes, finished_sweep: Sweep, tmp_path: Path
) -> None:
    words = ["--address", "auto", "--storage", "store", "--until", "scores"]
    of_that_node = {"RAY_TMPDIR": str(three_nodes.temp / "head")}  # where `auto` looks for it
    run = prefsweep(
        *("run", "quickstart", *OVERRIDES, *words), cwd=tmp_path, environment=of_that_node
    )
    output = run.communicate(timeout=300)[0]
    assert run.returncode == 0, output
    attached = open_sweep("small", str(tmp_path / "store"))
    assert content(attached, "scores") == content(finished_sweep, "scores")


def test_doctor_looks_at_every_node_as_a_run_does(three_nodes: RayNodes, tmp_path: Path) -> None:
    words = ["doctor", "quickstart", *OVERRIDES, "--storage", "store", "--json"]
    address = {"RAY_ADDRESS": three_nodes.address}
    process = prefsweep(*words, cwd=tmp_path, environment=address)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    lines = json.loads(output)["checks"]
    found = {line["check"]: line["found"] for line in lines}
    assert found["cluster"].endswith(": 3 nodes")
    assert [line["level"] for line in lines if line["check"] == "node"] == ["ok"] * 3
    assert found["storage"].endswith("is writable and readable on all 3 nodes")
    assert not list((tmp_path / "store").rglob("*.json")), "nothing is left behind"


def holding(text: str, folder: Path) -> list[Path]:
    """The files below a folder that hold a text."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return [file for file in files if text.encode() in file.read_bytes()]
