"""doctor looks at everything, says what to do, and ends: within its limit, without a traceback."""

import http.server
import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from prefsweep.orchestrator.commands import cli
from prefsweep.orchestrator.execution.nodes import Node, own_versions
from prefsweep.orchestrator.execution.placement import FIELDS, NodeSize, Placement, resources_of
from prefsweep.orchestrator.planning import checks
from prefsweep.orchestrator.planning.checks import (
    Check,
    Level,
    Line,
    cluster_lines,
    room,
    storage_here,
    storage_lines,
)
from prefsweep.orchestrator.planning.doctor import document, run_checks
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.errors import ClusterError
from prefsweep.sweeps.load import load_spec
from tests.integration.small import OVERRIDES


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cluster, no W&B key, no hub; a store of its own."""
    for name in ("RAY_ADDRESS", "WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("prefsweep.orchestrator.planning.doctor.LIMIT_S", 300.0)  # a busy machine
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, dict[str, list[Line]]]:
    """Exit code and lines by check, as `doctor --json` gives them."""
    monkeypatch.setattr(sys, "argv", ["prefsweep", "doctor", *words, "--json"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    found: dict[str, list[Line]] = {}
    for line in json.loads(said.out)["checks"]:
        found.setdefault(line["check"], []).append(Line(**line))
    return int(stop.value.code or 0), found


def one_error(lines: dict[str, list[Line]]) -> Line:
    errors = [line for check in lines.values() for line in check if line.level == Level.ERROR]
    assert len(errors) == 1, errors
    return errors[0]


def test_without_a_spec_it_looks_at_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = doctor(monkeypatch, capsys, "--storage", str(tmp_path / "new"))
    assert code == 0
    assert {"python", "packages", "cuda", "machine", "storage", "W&B"} == set(lines)
    assert "will be created by the first run" in lines["storage"][0].found
    assert not (tmp_path / "new").exists()


def test_with_a_spec_that_can_run_it_says_what_it_will_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quickstart", *OVERRIDES, "--storage", str(tmp_path)]
    code, lines = doctor(monkeypatch, capsys, *words)
    assert code == 0
    assert lines["spec"][0].found == "small, 2 trials"
    assert lines["trials"][0].found == "2 to run, 0 cached"
    assert {"policy", "reward", "prompts", "time", "disk"} <= set(lines)
    assert list((tmp_path / "tmp").iterdir()) == []  # what was written to try is gone


@pytest.mark.parametrize(
    ("words", "check", "found"),
    [
        (["training.max_stepz=1"], "spec", "did you mean training.max_steps"),
        (["policy.model=some/model"], "policy", "not in the local Hugging Face cache"),
        (["policy.model=package:no_such_package"], "policy", "is not installed"),
        (["prompts={type: file, path: nowhere.jsonl}"], "data", "nowhere.jsonl"),
        (["reward={type: callable, function: 'no.module:f'}"], "reward", "cannot be imported"),
        (["resources.gpus_per_trial=1000"], "spec", "resources.gpus_per_trial"),
        (["resources.cpus_per_worker=100000"], "resources", "cpus_per_worker=100000"),
        (["--storage", "file.txt/store"], "storage", "file.txt is a file; use a folder"),
        (["--storage", "nosuch://x"], "storage", "nosuch://x cannot be opened"),
        (["--address", "127.0.0.1:1"], "cluster", "nothing answers at 127.0.0.1:1"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_what_would_stop_a_run_is_an_error(
    words: list[str],
    check: str,
    found: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.txt").touch()
    code, lines = doctor(monkeypatch, capsys, "quickstart", *OVERRIDES, *words)
    error = one_error(lines)
    assert code == 2
    assert error.check == check
    assert found in error.found


def test_a_folder_without_weights_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    words = ["quickstart", *OVERRIDES, f"policy.model={tmp_path / 'model'}"]
    code, lines = doctor(monkeypatch, capsys, *words)
    assert (code, one_error(lines).check) == (2, "policy")
    assert "has no weights" in lines["policy"][0].found


def test_what_only_a_whole_sweep_shows_is_an_error_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_text("")  # and no config.json
    words = ["quickstart", *OVERRIDES, f"policy.model={tmp_path / 'model'}"]
    code, lines = doctor(monkeypatch, capsys, *words)
    assert (code, one_error(lines).check) == (2, "estimate")
    assert "has no config.json" in lines["estimate"][0].found


def test_a_disk_that_is_too_small_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=16)).save_pretrained(tmp_path / "model")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    words = ["quickstart", *OVERRIDES, f"policy.model={tmp_path / 'model'}"]
    code, lines = doctor(monkeypatch, capsys, *words, "--storage", str(tmp_path))
    assert (code, one_error(lines).check) == (2, "disk")
    assert "free space" in lines["disk"][0].remedy


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, lines = doctor(monkeypatch, capsys, "quickstart", *OVERRIDES, "reward={type: vader}")
    assert code == 2
    assert lines["reward"][0].remedy == "pip install vaderSentiment"


def test_a_package_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_version", lambda name: "1.15.0" if name == "trl" else "99.0")
    found = {line.found: line.remedy for line in checks.packages() if line.level == Level.ERROR}
    assert found["trl 1.15.0"] == "pip install 'trl==1.16.*'"


# --- W&B -----------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[str]:
    """A web server that knows no page; it answers, which is enough."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_wandb_is_online_where_its_server_answers(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server)
    _, lines = doctor(monkeypatch, capsys)
    assert (lines["W&B"][0].level, "responds" in lines["W&B"][0].found) == (Level.OK, True)


def test_wandb_out_of_reach_is_a_warning_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        code, lines = doctor(monkeypatch, capsys)
    assert code == 0
    assert lines["W&B"][0].level == Level.WARNING
    assert "cannot be reached" in lines["W&B"][0].found
    assert "k" * 40 not in str(lines)


def test_without_a_key_wandb_is_offline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, lines = doctor(monkeypatch, capsys)
    assert lines["W&B"][0] == Line("W&B", Level.OK, "recorded offline: no API key")


# --- limits --------------------------------------------------------------------------------------


def test_a_check_that_hangs_is_told_and_the_others_are_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    never = threading.Event()
    hanging = Check("hangs", lambda: [Line("hangs", Level.OK, str(never.wait()))])
    fine = Check("fine", lambda: [Line("fine", Level.OK, "well")])
    monkeypatch.setattr(
        "prefsweep.orchestrator.planning.doctor.all_checks", lambda *words: [hanging, fine]
    )
    found = run_checks(None, [], "runs", None, limit_s=2.0)
    never.set()
    assert found.hangs
    assert [(line.check, line.level) for line in found.lines] == [
        ("hangs", Level.WARNING),
        ("fine", Level.OK),
    ]
    assert found.lines[0].found == "no response within 2 s"


def test_a_check_that_fails_is_a_line_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[Line]:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(
        "prefsweep.orchestrator.planning.doctor.all_checks", lambda *words: [Check("broken", fail)]
    )
    found = run_checks(None, [], "runs", None)
    assert found.lines == [
        Line("broken", Level.WARNING, "the check failed: ZeroDivisionError: by nothing")
    ]
    assert document(found)["ok"]


# --- nodes ---------------------------------------------------------------------------------------


def node(name: str, **changes: object) -> Node:
    """A node like this machine."""
    fields: dict[str, object] = {
        "cpus": 2.0,
        "gpus": 1.0,
        "memory_gib": 8.0,
        "versions": own_versions(),
        "gpu_names": ["H100"],
    }
    return Node(name, name, **(fields | changes))  # pyright: ignore[reportArgumentType]


def test_nodes_that_differ_are_named_with_the_difference() -> None:
    ours = own_versions()
    nodes = [
        node("same"),
        node("build", versions=ours | {"torch": ours["torch"].split("+")[0] + "+cu130"}),
        node("old", versions=ours | {"torch": "2.1.0"}),
        node("bare", versions={k: v for k, v in ours.items() if k != "trl"}, error="no trl"),
        node("dead", versions={}, error="it did not answer"),
        node("head", versions={}, cpus=0.0),
    ]
    cluster, *lines = cluster_lines(nodes, "head:6379")
    assert cluster.found == "head:6379: 6 nodes"
    levels = [line.level for line in lines]
    assert levels == [Level.OK, Level.OK, *[Level.ERROR] * 3, Level.OK]
    assert f"torch 2.1.0 (driver {ours['torch']})" in lines[2].found
    assert f"trl is missing (driver {ours['trl']})" in lines[3].found
    assert "it did not answer" in lines[4].found
    assert "it runs no work" in lines[5].found


def test_a_node_that_does_not_share_the_storage_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    far = node("far", storage_error="it does not see a file that the driver wrote there")
    nodes = [node("near"), far, node("dead", error="gone"), node("head", cpus=0.0)]
    [line] = storage_lines(nodes, store)
    assert line.level == Level.ERROR
    assert f"--storage {tmp_path} does not work on node far: it does not see" in line.found
    assert "a folder that all nodes share" in line.remedy
    [line] = storage_lines([nodes[0], *nodes[2:]], store)
    assert (line.level, "on all 1 nodes" in line.found) == (Level.OK, True)


@pytest.mark.parametrize(
    ("nodes", "overrides", "refused"),
    [
        (
            [NodeSize(64), NodeSize(4, gpus=1)],
            ["cpus_per_worker=8", "gpus_per_trial=1"],
            "with 8 CPUs",
        ),
        ([NodeSize(64), NodeSize(8, gpus=1)], ["cpus_per_worker=8", "gpus_per_trial=1"], ""),
        ([NodeSize(4), NodeSize(4)], ["cpus_per_worker=8"], "no node has more than 4 of the"),
        ([NodeSize(8)], ["gpus_per_scorer=1"], "gpus_per_scorer=1"),
        ([NodeSize(8)], ["gpus_per_trial=0.5"], "gpus_per_trial=0.5"),
    ],
)
def test_doctor_judges_nodes_as_a_run_does(
    nodes: list[NodeSize], overrides: list[str], refused: str
) -> None:
    spec = load_spec("quickstart", [f"resources.{override}" for override in overrides])
    lines = list(room(spec, nodes, wait_s=0.0))
    said = ""
    try:
        Placement(resources_of(spec), lambda: nodes).require(list(FIELDS))
    except ClusterError as error:
        said = str(error)
    assert said == next((f"{line.found}; {line.remedy}" for line in lines), "")
    assert bool(said) == bool(refused) and refused in said
    assert all(line.level == Level.ERROR for line in lines)


def test_nodes_that_a_run_waits_for_are_no_error() -> None:
    words = ["resources.gpus_per_trial=0.5", "training.fp16=true", "training.bf16=false"]
    spec = load_spec("quickstart", words)
    [line] = room(spec, [NodeSize(8)], wait_s=600.0)
    assert line.level == Level.WARNING
    assert "waits up to 600 s" in line.found
    levels = [line.level for line in room(spec, [NodeSize(8)], wait_s=0.0)]
    assert levels == [Level.ERROR, Level.ERROR]


def test_a_store_that_only_fsspec_knows_is_as_good_for_doctor_as_for_a_run() -> None:
    [line] = storage_here("memory://bucket/runs")
    assert (line.level, line.found) == (Level.OK, "memory://bucket/runs is writable and readable")
