"""What reaches the workers of a cluster: settings by name, never a secret; our code as a folder."""

import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from prefsweep.orchestrator.driver.control import Control
from prefsweep.orchestrator.execution import membership
from prefsweep.orchestrator.execution import nodes as looking
from prefsweep.orchestrator.execution.membership import members_of
from prefsweep.orchestrator.execution.nodes import (
    Node,
    answer_through,
    check_cluster,
    own_versions,
    version_differences,
)
from prefsweep.orchestrator.execution.package import build_package
from prefsweep.orchestrator.execution.ray_session import (
    attach_ray,
    short_temp_folder,
    start_ray,
    worker_environment,
)
from prefsweep.orchestrator.state.inputs import (
    local_inputs,
    store_inputs,
    stored_inputs,
    with_inputs,
)
from prefsweep.orchestrator.state.sweep import resolve
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.errors import ClusterError, NodeError, StageError
from prefsweep.sweeps.load import load_spec
from tests.integration.small import small_sweep


def test_settings_are_forwarded_and_secrets_and_places_are_not() -> None:
    secrets = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY")
    secrets += ("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "WANDB_SECRET", "RAY_AUTH_TOKEN")
    places = ("HF_HOME", "HF_HUB_CACHE", "WANDB_DIR", "HF_TOKEN_PATH")
    settings = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "HF_ENDPOINT": "https://hub.org"}
    environ = dict.fromkeys((*secrets, *places), "do not tell") | settings
    environ |= {"PATH": "do not tell", "WANDB_BASE_URL": "https://me:do not tell@wandb.org"}
    sent = worker_environment(3, environ)
    assert settings.items() <= sent.items()
    assert sent["OMP_NUM_THREADS"] == "3"
    assert "do not tell" not in str(sent)


def test_trials_run_where_the_driver_runs_so_that_relative_paths_lead_somewhere() -> None:
    from ray.train.constants import RAY_CHDIR_TO_TRIAL_DIR

    assert worker_environment(1, {})[RAY_CHDIR_TO_TRIAL_DIR] == "0"


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({}, None),
        ({"TMPDIR": "/scratch/job-1"}, None),
        ({"TMPDIR": "/scratch/" + "x" * 60}, "/tmp"),
        ({"TMPDIR": "/scratch/" + "ü" * 20}, "/tmp"),  # 40 bytes
        ({"TMPDIR": "/scratch/" + "x" * 60, "RAY_TMPDIR": "/short"}, None),
    ],
)
def test_sockets_of_ray_are_kept_where_their_paths_fit(
    environ: dict[str, str], folder: str | None
) -> None:
    assert short_temp_folder(environ).get("RAY_TMPDIR") == folder
    place = folder or environ.get("RAY_TMPDIR") or environ.get("TMPDIR", "/tmp")
    session = f"session_{datetime.now():%Y-%m-%d_%H-%M-%S_%f}_{2**22}"
    assert len(f"{place}/ray/{session}/sockets/plasma_store".encode()) <= 107


def test_a_folder_of_ray_that_is_too_long_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"RAY_TMPDIR=/x.* has 61 bytes, .* set RAY_TMPDIR to a"):
        short_temp_folder({"RAY_TMPDIR": "/" + "x" * 60})


def test_a_ray_client_address_is_answered_with_what_works() -> None:
    with pytest.raises(ClusterError, match=r"the Ray client is not supported.*prefsweep submit"):
        attach_ray("ray://head:10001", load_spec("quickstart"))


def test_the_package_is_importable_where_prefsweep_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "mine"
    module.mkdir()
    (module / "__init__.py").write_text("")
    (module / "rewards.py").write_text("def zero(p, c): return [0.0 for _ in c]")
    (tmp_path / "prefsweep.egg-info").mkdir()  # what a checkout may have beside the packages
    (tmp_path / "prefsweep.egg-info" / "PKG-INFO").write_text("Name: prefsweep\nVersion: 3.4.5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    reward = "reward={type: callable, function: 'mine.rewards:zero'}"
    folder = tmp_path / "package"
    build_package(folder, load_spec("quickstart", [reward]))
    code = (
        "import prefsweep\n"
        "import prefsweep.sweeps.spec as spec, prefsweep.workers, prefsweep.orchestrator.report\n"
        "from importlib.metadata import version\n"
        "import mine.rewards\n"
        "print(prefsweep.__file__, spec.__file__, version('prefsweep'), mine.rewards.__file__)"
    )
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    package, where, version, mine = run.stdout.split()
    assert package == str(folder / "prefsweep" / "__init__.py")  # not one that is installed there
    assert where == str(folder / "prefsweep" / "sweeps" / "spec.py")
    assert version == "3.4.5"
    assert mine == str(folder / "mine" / "rewards.py")


def test_a_worker_reads_the_drivers_files_from_the_store(tmp_path: Path) -> None:
    file = tmp_path / "there" / "prompts.jsonl"
    file.parent.mkdir()
    file.write_text("".join(f'{{"text": "text {n}"}}\n' for n in range(9)))
    prompts = f"prompts={{type: file, path: '{file}', num_eval: 2}}"
    sweep = resolve(load_spec("quickstart", [prompts]), str(tmp_path / "store"))
    assert local_inputs(sweep.spec) == {"prompts.path": file}
    assert store_inputs(sweep.store, sweep.spec, sweep.inputs) == ["prompts.path"]
    content = file.read_bytes()
    file.unlink()
    here = stored_inputs(Store(sweep.storage), sweep.spec, sweep.inputs)
    assert here.prompts is not None and here.prompts.type == "file"
    assert Path(here.prompts.path).read_bytes() == content
    assert with_inputs(here, {"prompts.path": str(file)}) == sweep.spec


def test_versions_that_matter_are_compared_and_builds_of_one_are_not() -> None:
    ours = {"python": "3.11.7", "torch": "2.13.0+cpu", "trl": "1.16.0", "ray": "2.60.0"}
    same = {"python": "3.11.9", "torch": "2.13.0+cu130", "trl": "1.16.0", "ray": "2.60.0"}
    assert version_differences(ours, same) == ""
    other = {"python": "3.12.1", "torch": "2.12.0", "ray": "2.60.0"}
    assert version_differences(ours, other) == (
        "python 3.12.1 (driver 3.11.7), torch 2.12.0 (driver 2.13.0+cpu), "
        "trl is missing (driver 1.16.0)"
    )


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes a cluster of nodes that answer with what is given, and are asked in this process."""

    def make(**found: Callable[..., dict[str, Any]]) -> None:
        here = [Node(name, f"10.0.0.{name}", cpus=1.0) for name in found]
        monkeypatch.setattr(looking, "_nodes", lambda: here)
        monkeypatch.setattr(looking, "_ask", lambda node, *storage: (node.node_id, storage))

        def answered(node: Node, reference: tuple[str, Any], timeout_s: float) -> Node:
            name, storage = reference
            return replace(node, **{"versions": own_versions(), **found[name](*storage, name)})

        monkeypatch.setattr(looking, "_answered", answered)

    return make


def shares(*storage: str) -> dict[str, Any]:
    return {"storage_error": answer_through(*storage)}


def test_a_folder_that_a_node_does_not_share_is_refused_with_its_name(
    nodes: Callable[..., None], tmp_path: Path
) -> None:
    def has_its_own(uri: str, *rest: str) -> dict[str, Any]:
        return shares(str(tmp_path / "another disk"), *rest)

    def answers_elsewhere(uri: str, *rest: str) -> dict[str, Any]:
        return {}

    store = Store(str(tmp_path / "store"))
    nodes(a=shares)
    check_cluster(store)
    nodes(a=shares, b=has_its_own)
    with pytest.raises(ClusterError, match=r"does not work on node 10\.0\.0\.b: it does not see"):
        check_cluster(store)
    nodes(a=answers_elsewhere, b=shares)
    with pytest.raises(ClusterError, match=r"10\.0\.0\.a: the driver does not see"):
        check_cluster(store)
    assert store.names("artifacts") == [], "nothing is left behind"


def test_all_nodes_that_differ_are_told_before_what_follows_from_it(
    nodes: Callable[..., None], tmp_path: Path
) -> None:
    old = own_versions() | {"trl": "0.9.0"}
    bare = {name: version for name, version in own_versions().items() if name != "torch"}
    nodes(
        a=lambda *storage: {"versions": bare, "error": "it cannot run prefsweep's code: no torch"},
        b=lambda *storage: {"versions": old} | shares(*storage),
        c=shares,
    )
    with pytest.raises(ClusterError) as refused:
        check_cluster(Store(str(tmp_path / "store")))
    told = str(refused.value)
    assert "10.0.0.a: torch is missing" in told and "10.0.0.b: trl 0.9.0 (driver" in told
    assert "10.0.0.c" not in told


def test_a_worker_on_another_node_refuses_work_and_the_node_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = small_sweep(tmp_path / "store")
    node_id = "f0" * 28
    monkeypatch.setattr(membership, "_here", lambda: (node_id, "10.0.0.9"))
    with Control(sweep.store, sweep.spec.name):
        members = members_of(sweep)
        pickle.loads(pickle.dumps(members)).check()
        assert members.selector() == {}
        away = replace(members, store=Store(str(tmp_path / "another disk")))
        with pytest.raises(NodeError, match=r"does not work on node 10\.0\.0\.9: it does not see"):
            away.check()
        old = replace(members, versions=members.versions | {"trl": "9"})
        with pytest.raises(NodeError, match=r"node 10\.0\.0\.9 has .*trl .* \(driver 9\)") as error:
            old.check()
        assert not members.keep_off(ValueError("something else"))
        sent_back = pickle.loads(pickle.dumps(error.value))
        assert members.keep_off(sent_back) and members.keep_off(sent_back)
        assert members.selector() == {"ray.io/node-id": f"!in({node_id})"}


def test_a_package_without_an_init_travels_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("here", "there"):
        (tmp_path / place / "bare").mkdir(parents=True)
        monkeypatch.syspath_prepend(str(tmp_path / place))
    (tmp_path / "here" / "bare" / "words.py").write_text("LIKED = ('good',)")
    rewards = "from bare.words import LIKED\ndef zero(p, c): return [0.0 for _ in c]"
    (tmp_path / "there" / "bare" / "rewards.py").write_text(rewards)
    reward = "reward={type: callable, function: 'bare.rewards:zero'}"
    build_package(tmp_path / "package", load_spec("quickstart", [reward]))
    sent = {path.name for path in (tmp_path / "package" / "bare").glob("*.py")}
    assert sent == {"words.py", "rewards.py"}


def test_a_ray_whose_process_ends_while_it_starts_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(StageError, match=r"Ray at this machine: .* timed out .*same command again"):
        start_ray(1, 2)


def test_an_address_where_nothing_answers_is_told_before_ray_tries_for_minutes() -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"nothing answers at {address}"):
            attach_ray(address, load_spec("quickstart"))
    with pytest.raises(ClusterError, match=r"is a dashboard.*HOST:6379"):
        attach_ray("http://head:8265", load_spec("quickstart"))
