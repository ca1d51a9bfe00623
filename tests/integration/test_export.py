"""Exports of finished trials and pairs: what others load is what was trained, here and pushed."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import load_dataset
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefsweep.orchestrator.execution.cluster import InlineCluster
from prefsweep.orchestrator.export.export import MARK, ExportRequest, export
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.sweeps.errors import SweepError, UsageError
from prefsweep.workers.models import load_trained

from .fake_hub import TOKEN, FakeHub, fake_hub
from .small import small_sweep

LORA = "training.lora={r: 4, lora_alpha: 8, target_modules: [c_attn, c_proj]}"
NAME = "sigmoid-beta0.1"


def run_small(folder: Path, *overrides: str) -> Sweep:
    sweep = small_sweep(folder, "grid=[{learning_rate: 5e-2}]", *overrides)
    run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources))
    return sweep


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return run_small(tmp_path_factory.mktemp("lora"), LORA)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return run_small(tmp_path_factory.mktemp("full"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The library's client, switched on and turned to a local hub."""
    from huggingface_hub import close_session, constants

    with fake_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        close_session()
        yield hub
        close_session()


@torch.no_grad()
def logps(model: Any, token_ids: torch.Tensor) -> torch.Tensor:
    """Log-probability of every token after the first."""
    logits = model.eval()(token_ids).logits.float().log_softmax(-1)
    return logits[:, :-1].gather(-1, token_ids[:, 1:, None]).squeeze(-1)


def token_ids() -> torch.Tensor:
    return torch.randint(3, 1000, (4, 24), generator=torch.Generator().manual_seed(0))


def of_the_trial(sweep: Sweep) -> torch.Tensor:
    """What the trial's own checkpoint in the store gives."""
    trial_id = sweep.trials[0].trial_id
    weights = sweep.store.fetch(sweep.store.trial(trial_id, "weights"))
    return logps(load_trained(sweep.policy_source(), weights), token_ids())


def untrained(sweep: Sweep) -> torch.Tensor:
    folder = sweep.store.fetch(sweep.path("policy"))
    return logps(AutoModelForCausalLM.from_pretrained(folder), token_ids())


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def header(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


# --- models --------------------------------------------------------------------------------------


def test_an_adapter_with_its_base_gives_the_log_probabilities_of_the_checkpoint(
    lora: Sweep, tmp_path: Path
) -> None:
    folder = export(lora, ExportRequest(NAME), tmp_path / "adapter").folder
    expected = of_the_trial(lora)
    assert (expected - untrained(lora)).abs().max() > 1e-2
    assert_equal(logps(AutoPeftModelForCausalLM.from_pretrained(folder), token_ids()), expected)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder / "base")
    assert config["revision"] is None
    assert header(folder)["library_name"] == "peft"
    assert lora.storage not in "".join(
        file.read_text() for file in folder.rglob("*.[jm][sd]*") if file.name != MARK
    )
    moved = folder.rename(tmp_path / "moved")  # and as the card says, from anywhere
    base = AutoModelForCausalLM.from_pretrained(moved / "base")
    assert_equal(logps(PeftModel.from_pretrained(base, str(moved)), token_ids()), expected)
    assert AutoTokenizer.from_pretrained(moved)("This film").input_ids


def test_a_merged_adapter_is_a_whole_model_of_the_same_log_probabilities(
    lora: Sweep, tmp_path: Path
) -> None:
    folder = export(lora, ExportRequest(NAME, merge=True), tmp_path / "merged").folder
    assert not list(folder.glob("adapter*")) and not (folder / "base").exists()
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert_equal(logps(model, token_ids()), of_the_trial(lora))
    assert AutoTokenizer.from_pretrained(folder)("This film").input_ids
    assert header(folder)["library_name"] == "transformers"


def test_a_fully_trained_model_gives_the_same_log_probabilities(
    full: Sweep, tmp_path: Path
) -> None:
    trial_id = full.trials[0].trial_id
    folder = export(full, ExportRequest(trial_id[:6]), tmp_path / "new" / "full").folder
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert_equal(logps(model, token_ids()), of_the_trial(full))
    assert AutoTokenizer.from_pretrained(folder)("This film").input_ids
    with pytest.raises(UsageError, match="no adapter to merge"):
        export(full, ExportRequest(trial_id, merge=True), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_card_has_the_metrics_of_the_evaluation_beside_the_untrained_policys(
    full: Sweep, tmp_path: Path
) -> None:
    from prefsweep.orchestrator.text import show

    card = (export(full, ExportRequest(NAME), tmp_path / "out").folder / "README.md").read_text()
    rows = []
    for trial_id in (full.trials[0].trial_id, "untrained"):
        metrics = full.store.read_json(f"{full.evaluation_path(trial_id)}/metrics.json")
        low, high = show(metrics["reward_ci_low"]), show(metrics["reward_ci_high"])
        rows.append(f"{show(metrics['reward_mean'])} [{low}, {high}]")
    assert f"| reward_mean | {rows[0]} | {rows[1]} |" in card
    assert "| learning_rate | 0.05 |" in card
    assert f"torch {torch.__version__}" in card


def test_an_export_again_replaces_its_folder_and_one_of_another_form_does_not(
    lora: Sweep, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    export(lora, ExportRequest(NAME, merge=True), target)
    (target / "config.json").write_text("edited")
    export(lora, ExportRequest(NAME, merge=True), target)
    assert json.loads((target / "config.json").read_text())["model_type"] == "gpt2"
    with pytest.raises(UsageError, match=r"holds another export \(export model.*form merged"):
        export(lora, ExportRequest(NAME), target)
    assert sorted(tmp_path.iterdir()) == [target]


@pytest.mark.filterwarnings("ignore:Could not find a config file")  # peft asks the hub alone
def test_an_adapter_on_a_hub_model_keeps_its_id_and_commit(
    lora: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run, export and load with the policy in a cache of hub models, by its id alone."""
    commit = "c0ffee" + "0" * 34
    model = tmp_path / "hub/models--owner--tiny"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text(commit)
    (model / "snapshots").mkdir()
    (model / "snapshots" / commit).symlink_to(lora.store.fetch(lora.path("policy")))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    sweep = run_small(tmp_path / "store", LORA, "policy.model=owner/tiny")
    export(sweep, ExportRequest(NAME), tmp_path / "out")
    export(sweep, ExportRequest(NAME, merge=True), tmp_path / "merged")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float32")
    assert_equal(logps(loaded, token_ids()), of_the_trial(sweep))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert_equal(logps(merged, token_ids()), of_the_trial(sweep))
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/tiny", commit)
    assert not (tmp_path / "out/base").exists()
    assert header(tmp_path / "out")["base_model"] == "owner/tiny"
    assert header(tmp_path / "merged")["base_model"] == "owner/tiny"


# --- pushing -------------------------------------------------------------------------------------


def test_a_pushed_adapter_has_every_file_and_no_path_of_this_machine(
    lora: Sweep, tmp_path: Path, hub: FakeHub
) -> None:
    exported = export(lora, ExportRequest(NAME, repo="me/adapter", private=True), tmp_path / "out")
    assert exported.url == f"{hub.endpoint}/me/adapter"
    repo = hub.repos["model", "me/adapter"]
    assert repo.private
    local = {
        file.relative_to(exported.folder).as_posix(): file.read_bytes()
        for file in exported.folder.rglob("*")
        if file.is_file()
    }
    assert repo.files.keys() == local.keys()
    different = [name for name in local if local[name] != repo.files[name]]
    assert different == ["adapter_config.json"]
    assert json.loads(repo.files["adapter_config.json"])["base_model_name_or_path"] == "me/adapter"
    assert not [name for name, data in repo.files.items() if str(tmp_path).encode() in data]
    assert 'snapshot_download("me/adapter")' in repo.files["README.md"].decode()


def test_a_merged_push_removes_the_adapter_pushed_before_and_keeps_other_files(
    lora: Sweep, tmp_path: Path, hub: FakeHub
) -> None:
    export(lora, ExportRequest(NAME, repo="me/model"), tmp_path / "adapter")
    repo = hub.repos["model", "me/model"]
    repo.files["LICENSE"] = b"mine"
    merged = export(
        lora, ExportRequest(NAME, merge=True, repo="me/model"), tmp_path / "merged"
    ).folder
    assert repo.files.keys() == {file.name for file in merged.iterdir()} | {"LICENSE"}


def test_what_the_hub_refuses_or_fails_at_is_told_and_the_folder_stays(
    full: Sweep, tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"others/model.*rights.*The export is in") as refused:
        export(full, ExportRequest(NAME, repo="others/model"), tmp_path / "a")
    assert (tmp_path / "a/model.safetensors").is_file()
    assert isinstance(refused.value, UsageError)
    hub.failing = "/commit/"
    with pytest.raises(SweepError, match=r"me/model.*The export is in") as failed:
        export(full, ExportRequest(NAME, repo="me/model"), tmp_path / "b")
    assert not isinstance(failed.value, UsageError)
    assert (tmp_path / "b/model.safetensors").is_file()
    hub.failing = ""
    with pytest.raises(UsageError, match="me/model exists and is public: nothing was pushed"):
        export(full, ExportRequest(NAME, repo="me/model", private=True), tmp_path / "c")
    assert hub.repos["model", "me/model"].num_commits == 0
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UsageError, match="me/model"):
        export(full, ExportRequest(NAME, repo="me/model"), tmp_path / "d")


def test_a_hub_that_is_not_there_is_told(
    full: Sweep, tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SweepError, match=r"me/model.*The export is in"):
        export(full, ExportRequest(NAME, repo="me/model"), tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").is_file()


def test_a_pushed_dataset_is_a_dataset_repository(
    full: Sweep, tmp_path: Path, hub: FakeHub
) -> None:
    exported = export(full, ExportRequest(dataset=True, repo="me/pairs"), tmp_path / "out")
    assert exported.url == f"{hub.endpoint}/datasets/me/pairs"
    files = hub.repos["dataset", "me/pairs"].files
    assert {"README.md", "data/train-00000.parquet", "data/test-00000.parquet"} <= files.keys()
    assert 'load_dataset("me/pairs")' in files["README.md"].decode()
    pushed = tmp_path / "pushed"
    for name, data in files.items():
        (pushed / name).parent.mkdir(parents=True, exist_ok=True)
        (pushed / name).write_bytes(data)
    assert load_dataset(str(pushed), cache_dir=str(tmp_path / "cache"))["train"].num_rows > 0


def test_a_damaged_artefact_is_not_exported(full: Sweep, tmp_path: Path) -> None:
    """The content hash is read in a fresh process's store."""
    import shutil

    copy = replace(full, storage=str(shutil.copytree(full.storage, tmp_path / "store")))
    weights = copy.store.fetch(copy.store.trial(copy.trials[0].trial_id, "weights"))
    data = bytearray((weights / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (weights / "model.safetensors").write_bytes(bytes(data))
    fresh = replace(copy)
    with pytest.raises(SweepError, match="is damaged"):
        export(fresh, ExportRequest(NAME), tmp_path / "out")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["store"]
