"""A spec that comes from the store runs no code unasked, and its hashes are of what it names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from prefsweep.orchestrator.commands import cli
from prefsweep.orchestrator.export import export
from prefsweep.orchestrator.state.sweep import Sweep, open_sweep, spec_document
from prefsweep.orchestrator.store.store import Store, new_manifest
from prefsweep.sweeps.errors import ModelError, UsageError
from prefsweep.sweeps.spec import PolicySpec
from prefsweep.workers.locations import model_identity
from tests.integration.small import small_sweep
from tests.unit.orchestrator.test_cli import prefsweep

COMMIT, OTHER = "c0ffee" + "0" * 34, "bad" + "0" * 37
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    sweep = small_sweep(tmp_path / "store")
    sweep.store.write_json(sweep.store.sweep("small", "spec.json"), spec_document(sweep))
    return sweep


def edit(sweep: Sweep, change: Edit) -> None:
    """What somebody who can write to the store does."""
    path = sweep.store.sweep("small", "spec.json")
    document = sweep.store.read_json(path)
    change(document)
    sweep.store.write_json(path, document)


def policy_code(document: dict[str, Any]) -> None:
    document["spec"]["policy"] |= {"trust_remote_code": True, "revision": COMMIT}


def reward_code(document: dict[str, Any]) -> None:
    document["spec"]["reward"] |= {"trust_remote_code": True, "revision": COMMIT}


def a_function(document: dict[str, Any]) -> None:
    document["spec"]["reward"] = {"type": "callable", "function": "pty:spawn"}
    document["inputs"]["reward"] = ""


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (policy_code, "policy.trust_remote_code=True (the code of policy.model=builtin:"),
        (reward_code, "reward.trust_remote_code=True (the code of reward.model=builtin:"),
        (a_function, "reward.function=pty:spawn"),
    ],
)
def test_resume_runs_code_that_a_store_names_only_with_consent(
    change: Edit,
    code: str,
    sweep: Sweep,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran: list[Sweep] = []
    monkeypatch.setattr(cli, "run_with_view", lambda sweep, options: ran.append(sweep))
    words = ["resume", "small", "--storage", sweep.storage]
    assert prefsweep(monkeypatch, *words) == 0 and len(ran) == 1, "nothing to consent to"
    edit(sweep, change)
    assert prefsweep(monkeypatch, *words) == 2 and len(ran) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert code in said and "Pass --trust-remote-code if you trust it" in said
    assert prefsweep(monkeypatch, *words, "--trust-remote-code") == 0 and len(ran) == 2


def test_export_loads_a_model_with_code_that_a_store_names_only_with_consent(
    sweep: Sweep,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrote: list[Sweep] = []

    def write(sweep: Sweep, *_: object) -> export.Exported:
        wrote.append(sweep)
        return export.Exported(tmp_path)

    monkeypatch.setattr(export, "export", write)
    words = ["export", "small", "--storage", sweep.storage, "--to", str(tmp_path / "out")]
    edit(sweep, policy_code)
    assert prefsweep(monkeypatch, *words, "a-trial") == 2 and not wrote
    assert "policy.trust_remote_code=True" in capsys.readouterr().err
    assert prefsweep(monkeypatch, *words, "a-trial", "--trust-remote-code") == 0
    assert prefsweep(monkeypatch, *words, "--dataset") == 0, "no model is loaded"
    assert len(wrote) == 2


def of_a_hub_model(identity: str, **policy: str) -> Edit:
    def change(document: dict[str, Any]) -> None:
        document["spec"]["policy"] |= {"model": "owner/tiny"} | policy
        document["inputs"]["policy"] = identity

    return change


@pytest.mark.parametrize(
    "change",
    [
        of_a_hub_model("owner/tiny@refs/pr/7"),
        of_a_hub_model("owner/tiny@None"),
        of_a_hub_model(f"owner/tiny@{COMMIT[:12]}"),
        of_a_hub_model(f"evil/tiny@{COMMIT}"),
        of_a_hub_model(f"owner/tiny@{OTHER}", revision=COMMIT),
        of_a_hub_model("builtin:tiny@1"),
        lambda document: document["inputs"].update(policy="builtin:another@1"),
        lambda document: document["inputs"].update(prompts=f"owner/texts@{COMMIT}"),
    ],
)
def test_a_recorded_commit_that_is_none_of_what_the_spec_names_is_refused(
    change: Edit, sweep: Sweep
) -> None:
    edit(sweep, of_a_hub_model(f"owner/tiny@{COMMIT}", revision="main"))
    assert open_sweep("small", sweep.storage).inputs.policy == f"owner/tiny@{COMMIT}"
    sweep.store.write_json(sweep.store.sweep("small", "spec.json"), spec_document(sweep))
    edit(sweep, change)
    with pytest.raises(UsageError, match=r"spec\.json: the identity of .* is not a commit of "):
        open_sweep("small", sweep.storage)


def test_what_the_hub_calls_a_commit_has_to_be_a_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    class Info:
        sha, siblings = None, None

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: Info)
    with pytest.raises(ModelError, match="its commit None is not a commit hash"):
        model_identity(PolicySpec(model="owner/tiny"), "policy.model")


IDENTITY, ANOTHER = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("path", "own"),
    [
        (f"artifacts/pairs-{IDENTITY[:16]}", IDENTITY),
        (f"trials/{IDENTITY[:12]}/weights", IDENTITY[:12]),
        (f"trials/{IDENTITY[:12]}/checkpoints/step-00001", IDENTITY[:12]),
        (f"trials/{ANOTHER[:12]}/evaluations/{IDENTITY[:16]}", IDENTITY),
    ],
)
def test_a_manifest_of_something_else_makes_an_artefact_count_as_not_made(
    path: str, own: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(str(tmp_path))
    for fingerprint in (ANOTHER, own):
        with store.staging() as folder:
            (folder / "artifact").mkdir()
            (folder / "artifact" / "a").write_text(fingerprint)
            store.publish(path, folder / "artifact", new_manifest(fingerprint, 1, 0.0))
        is_own = store.manifest(path) is not None
        assert is_own == (fingerprint == own)
    assert "its manifest belongs to another artefact" in caplog.text
    assert (store.fetch(path) / "a").read_text() == own
