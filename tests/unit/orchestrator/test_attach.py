"""What reaches the workers of a cluster: settings by name, never a secret; our code as a folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from prefsweep.orchestrator.machines.attach import attach_ray, worker_environment
from prefsweep.orchestrator.machines.inputs import (
    local_inputs,
    store_inputs,
    stored_inputs,
    with_inputs,
)
from prefsweep.orchestrator.machines.nodes import (
    Node,
    answer_through,
    check_storage,
    version_differences,
)
from prefsweep.orchestrator.machines.parcel import make_parcel
from prefsweep.orchestrator.store import Store
from prefsweep.orchestrator.sweep import resolve
from prefsweep.sweeps.errors import ClusterError
from prefsweep.sweeps.load import load_spec


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


def test_a_ray_client_address_is_answered_with_what_works() -> None:
    with pytest.raises(ClusterError, match=r"the Ray client is not supported.*prefsweep submit"):
        attach_ray("ray://head:10001", load_spec("quickstart"))


def test_the_parcel_is_importable_where_prefsweep_is_not_installed(
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
    folder = tmp_path / "parcel"
    make_parcel(folder, load_spec("quickstart", [reward]))
    code = (
        "import prefsweep.sweeps.spec as spec, prefsweep.workers, prefsweep.orchestrator.report\n"
        "from importlib.metadata import version\n"
        "import mine.rewards\n"
        "print(spec.__file__, version('prefsweep'), mine.rewards.__file__)"
    )
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    where, version, mine = run.stdout.split()
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


def test_a_folder_that_a_node_does_not_share_is_refused_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(nodes, function, arguments):
        assert function is answer_through
        said = {}
        for node in nodes:
            uri, *rest = arguments(node)
            seen = uri if node.name == "10.0.0.1" else str(tmp_path / "another disk")
            said[node.node_id] = answer_through(seen, *rest)
        return said

    monkeypatch.setattr("prefsweep.orchestrator.machines.nodes._on_each", elsewhere)
    shares, has_own = Node("a", "10.0.0.1"), Node("b", "10.0.0.2 (lonely)")
    store = Store(str(tmp_path / "store"))
    check_storage(store, [shares])
    with pytest.raises(ClusterError, match=r"does not work on node 10\.0\.0\.2 \(lonely\): what "):
        check_storage(store, [shares, has_own])
    assert store.names("artifacts") == [], "nothing is left behind"
