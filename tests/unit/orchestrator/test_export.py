"""Exports that need no model: the dataset, the cards, and every way to be refused."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import load_dataset

from prefsweep.orchestrator.export.cards import ModelFacts, PairFacts, dataset_card, model_card
from prefsweep.orchestrator.export.export import (
    MARK,
    ExportRequest,
    export,
    export_dataset,
)
from prefsweep.orchestrator.export.hub import check_push
from prefsweep.orchestrator.state.sweep import Sweep, find_trial
from prefsweep.orchestrator.state.trial_record import TrialRecord
from prefsweep.orchestrator.store.store import new_manifest
from prefsweep.sweeps.errors import UsageError
from prefsweep.sweeps.load import load_spec
from prefsweep.sweeps.records import Failure, PreferencePair, Status
from prefsweep.sweeps.spec import SweepSpec
from prefsweep.workers import tables
from tests.integration.small import small_sweep

from .test_cli import prefsweep

PAIRS = [
    PreferencePair(
        pair_id=f"{prompt}-{rank}-3",
        prompt_id=prompt,
        split="test" if prompt in tests else "train",
        prompt=f"{prompt} is",
        chosen=f" fine {rank}",
        rejected=" bad: | ---\n",
        chosen_score=1.5,
        rejected_score=-0.5,
        chosen_finish_reason="eos",
        rejected_finish_reason="length",
    )
    for tests in ["ab"]
    for prompt in "abcde"
    for rank in (0, 1)
]
SHA = "0123456789abcdef" * 2 + "01234567"


def sweep_with_pairs(storage: Path, pairs: list[PreferencePair] = PAIRS) -> Sweep:
    sweep = small_sweep(storage)
    with sweep.store.staging() as folder:
        output = folder / "pairs"
        output.mkdir()
        tables.write_records(pairs, PreferencePair, output / "pairs.parquet")
        manifest = new_manifest(sweep.fingerprints.pairs, len(pairs), 0.1)
        sweep.store.publish(sweep.path("pairs"), output, manifest)
    return sweep


def header(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("\n---\n")[0])


def facts(spec: SweepSpec, **changes: Any) -> ModelFacts:
    fields: dict[str, Any] = {
        "trial_id": "abcdef123456",
        "name": "sigmoid-beta0.1",
        "trial": spec.trials()[0],
        "form": "adapter",
        "hub_base": None,
        "base_id": None,
        "pairs": PairFacts(num_train=6, num_test=1, num_prompts=1234),
        "num_completions": 120,
        "metrics": {
            "reward_mean": 1.25,
            "reward_ci_low": 1.125,
            "reward_ci_high": 1.375,
            "win_rate": None,
            "kl": 2.0,
            "new_metric": 7.0,
        },
        "untrained": {"reward_mean": 0.5, "kl": 0.0},
        "environment": {"torch": "2.0", "host": "my-laptop"},
    }
    return ModelFacts(spec=spec, **(fields | changes))


# --- the dataset ---------------------------------------------------------------------------------


def test_the_dataset_loads_with_both_splits_and_no_prompt_in_both(tmp_path: Path) -> None:
    sweep = sweep_with_pairs(tmp_path / "store")
    folder = export(sweep, ExportRequest(dataset=True), tmp_path / "out").folder
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "test"}
    prompts = {split: set(loaded[split]["prompt_id"]) for split in loaded}
    assert prompts == {"train": set("cde"), "test": set("ab")}
    for split in loaded:
        expected = [pair for pair in PAIRS if pair.split == split]
        assert loaded[split].to_list() == [
            {name: getattr(pair, name) for name in loaded[split].column_names} for pair in expected
        ]
    assert loaded["train"].column_names == [
        "prompt",
        "chosen",
        "rejected",
        "chosen_score",
        "rejected_score",
        "prompt_id",
        "pair_id",
    ]
    card = (folder / "README.md").read_text()
    assert "6 training pairs and 4 test pairs from 5 prompts" in card
    assert "dpo" in header(card)["tags"]


def test_a_dataset_without_test_pairs_has_one_split(tmp_path: Path) -> None:
    train = [pair for pair in PAIRS if pair.split == "train"]
    sweep = sweep_with_pairs(tmp_path / "store", train)
    folder = export(sweep, ExportRequest(dataset=True), tmp_path / "out").folder
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {split: loaded[split].num_rows for split in loaded} == {"train": 6}


def test_pairs_that_are_not_made_yet_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"pending; `prefsweep resume small --storage /\S+` makes"):
        export(small_sweep(tmp_path / "store"), ExportRequest(dataset=True), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- which trial ---------------------------------------------------------------------------------


def test_a_trial_is_named_by_id_beginning_of_id_or_name(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path)
    for trial in sweep.trials:
        for word in (trial.trial_id, trial.trial_id[:8], trial.name):
            assert find_trial(sweep, word) == trial


@pytest.mark.parametrize("word", ["nothing", "", "sigmoid"])
def test_an_unknown_trial_is_answered_with_the_known_ones(word: str, tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path)
    with pytest.raises(UsageError, match="is not a trial of small") as refused:
        find_trial(sweep, word)
    assert all(f"{trial.trial_id} {trial.name}" in str(refused.value) for trial in sweep.trials)


def test_the_beginning_of_several_ids_is_refused(tmp_path: Path) -> None:
    betas = ", ".join(f"{beta / 100}" for beta in range(1, 18))  # more ids than hex digits
    sweep = small_sweep(tmp_path, f"grid=[{{beta: [{betas}]}}]")
    firsts = [trial.trial_id[0] for trial in sweep.trials]
    word = max(firsts, key=firsts.count)
    with pytest.raises(UsageError, match=f"{word!r} is the prefix of several ids"):
        find_trial(sweep, word)


def test_an_unfinished_trial_is_refused_with_its_status(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path / "store")
    first, second = sweep.trials
    TrialRecord(sweep, second).write(Status.FAILED, Failure("deterministic", "the loss is nan"))
    for trial, said in ((first, "is pending"), (second, r"is failed \(the loss is nan\)")):
        with pytest.raises(UsageError, match=f"trial {trial.name} {said}"):
            export(sweep, ExportRequest(trial.name), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the folder ----------------------------------------------------------------------------------


def test_a_folder_with_other_content_is_refused_and_left_alone(tmp_path: Path) -> None:
    sweep = sweep_with_pairs(tmp_path / "store")
    for name, content in (("notes.txt", "mine"), (MARK, "{}"), (MARK, "[1]"), (MARK, "\x00")):
        target = tmp_path / "taken"
        target.mkdir(exist_ok=True)
        (target / name).write_text(content)
        with pytest.raises(UsageError, match="is not empty; choose a new or empty folder"):
            export(sweep, ExportRequest(dataset=True), target)
        assert [item.read_text() for item in target.iterdir()] == [content]
        (target / name).unlink()
    (target / "folder").mkdir()
    with pytest.raises(UsageError, match="is not empty"):
        export(sweep, ExportRequest(dataset=True), target)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UsageError, match="is a file"):
        export(sweep, ExportRequest(dataset=True), file)
    with pytest.raises(UsageError, match="cannot be written"):
        export(sweep, ExportRequest(dataset=True), file / "below")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "store", "taken"]


def test_an_empty_folder_and_an_earlier_export_of_the_same_are_replaced_whole(
    tmp_path: Path,
) -> None:
    sweep, target = sweep_with_pairs(tmp_path / "store"), tmp_path / "out"
    target.mkdir()
    export(sweep, ExportRequest(dataset=True), target)
    before = {file: file.read_bytes() for file in target.rglob("*.*")}
    (target / "data" / "test-00000.parquet").unlink()
    (target / "README.md").write_text("changed")
    export(sweep, ExportRequest(dataset=True), target)
    assert {file: file.read_bytes() for file in target.rglob("*.*")} == before
    (target / "data" / "mine.parquet").touch()
    with pytest.raises(UsageError, match=r"has other files in it \(data/mine.parquet\)"):
        export(sweep, ExportRequest(dataset=True), target)
    assert (target / "data" / "mine.parquet").exists()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "store"]


def test_an_export_of_another_sweep_is_not_replaced(tmp_path: Path) -> None:
    sweep, target = sweep_with_pairs(tmp_path / "store"), tmp_path / "out"
    export(sweep, ExportRequest(dataset=True), target)
    (target / MARK).write_text((target / MARK).read_text().replace('"small"', '"large"'))
    with pytest.raises(UsageError, match=r"holds another export .*sweep large"):
        export(sweep, ExportRequest(dataset=True), target)


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name either a trial or --dataset"),
        (["sigmoid-beta0.1", "--dataset"], "name either a trial or --dataset"),
        (["--dataset", "--merge"], "--merge is for models"),
        (["--dataset", "--private"], "--private needs --push-to-hub"),
        (["--dataset", "--push-to-hub", "a/b/c"], "--push-to-hub a/b/c"),
        (["--dataset", "--push-to-hub", "name"], "write it as OWNER/name"),
        (["--dataset", "--push-to-hub", "me/name"], "HF_HUB_OFFLINE"),
        (["nothing"], "'nothing' is not a trial of small"),
    ],
)
def test_a_wrong_command_is_one_message_and_exit_code_2(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from prefsweep.orchestrator.state.sweep import spec_document

    sweep = sweep_with_pairs(tmp_path / "store")
    sweep.store.write_json(sweep.store.sweep("small", "spec.json"), spec_document(sweep))
    words = ["export", "small", *words, "--to", str(tmp_path / "out")]
    assert prefsweep(monkeypatch, *words, "--storage", sweep.storage) == 2
    message = capsys.readouterr().err
    assert said in " ".join(message.split())
    assert "Traceback" not in message
    assert not (tmp_path / "out").exists()


def test_the_command_says_where_the_export_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefsweep.orchestrator.state.sweep import spec_document

    sweep = sweep_with_pairs(tmp_path / "store")
    sweep.store.write_json(sweep.store.sweep("small", "spec.json"), spec_document(sweep))
    monkeypatch.chdir(tmp_path)
    words = ["export", "small", "--dataset", "--to", "out", "--storage", "store"]
    assert prefsweep(monkeypatch, *words) == 0
    assert capsys.readouterr().out == f"{tmp_path}/out\n"
    assert prefsweep(monkeypatch, "export", "other", "--dataset", "--to", "out2") == 2


def test_a_push_without_a_token_names_both_ways_to_give_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in [name for name in os.environ if name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]:
        monkeypatch.delenv(name)
    with pytest.raises(UsageError, match=r"no token; set HF_TOKEN .*`hf auth login`"):
        check_push("me/model")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    check_push("me/model")


# --- cards ---------------------------------------------------------------------------------------


def test_the_model_card_has_grid_point_counts_metrics_and_versions() -> None:
    card = model_card(facts(load_spec("quickstart", [])))
    assert header(card) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["prefsweep", "dpo", "trl", "lora"],
    }
    for line in (
        "| loss_type | hinge |",
        "| beta | 0.05 |",
        "| max_steps | 40 |",
        "| reward_mean | 1.250 [1.125, 1.375] | 0.500 |",
        "| kl | 2.000 | 0.000 |",
        "| new_metric | 7.000 | \N{EN DASH} |",
    ):
        assert line in card.splitlines(), line
    assert "6 training pairs and 1 test pair from 1,234 prompts" in card
    assert "120 sampled completions of held-out prompts" in card
    assert "logit of POSITIVE by builtin:tiny-classifier, trained for this sweep" in card
    assert "torch 2.0" in card
    assert "win_rate" not in card and "label_smoothing" not in card
    assert "my-laptop" not in card


def test_the_card_names_hub_ids_in_its_header_and_no_path_of_this_machine() -> None:
    spec = load_spec(
        "quickstart",
        [
            "policy.sft=null",
            "policy.model=/home/me/secret/gpt2-sft",
            "prompts={type: dataset, dataset: stanfordnlp/imdb}",
        ],
    )
    from_a_hub = PairFacts(1, 1, 2, hub_datasets=["stanfordnlp/imdb"])
    card = model_card(facts(spec, pairs=from_a_hub))
    assert header(card)["datasets"] == ["stanfordnlp/imdb"]
    assert "base_model" not in header(card)
    assert "gpt2-sft" in card and "/home/me" not in card
    from_hub = facts(spec, hub_base=("owner/gpt2", SHA), base_id="owner/gpt2", repo="me/out")
    card = model_card(from_hub)
    assert header(card)["base_model"] == "owner/gpt2"
    assert f"owner/gpt2 at commit {SHA}" in card
    assert 'AutoPeftModelForCausalLM.from_pretrained("me/out", dtype="float32")' in card


def test_no_text_of_the_user_breaks_header_or_table() -> None:
    nasty = "a|b\n---\ntags: [x]\n# <b>\"'{}: &anchor `x` [y](z)"
    spec = load_spec("quickstart", [])
    reward = spec.reward.model_copy(update={"label": nasty})  # pyright: ignore
    policy = spec.policy.model_copy(update={"model": nasty, "revision": None})
    prompts = spec.prompts.model_copy(update={"dataset": nasty})  # pyright: ignore
    spec = spec.model_copy(update={"reward": reward, "policy": policy, "prompts": prompts})
    nasty_facts = facts(spec, base_id=nasty, environment={"torch": nasty})
    for card in (
        model_card(nasty_facts),
        dataset_card(spec, PairFacts(1, 1, 1), {"torch": nasty}),
    ):
        assert "tags: [x]" not in card.splitlines()
        assert set(header(card)) < {
            *("base_model", "library_name", "pipeline_tag", "tags"),
            *("task_categories", "configs"),
        }
        tables_of_card = [line for line in card.splitlines() if line.startswith("|")]
        assert tables_of_card and all("<b>" not in line for line in card.splitlines()[20:])
    assert header(model_card(nasty_facts))["base_model"] == nasty


def test_the_dataset_card_of_entered_data_does_not_claim_that_it_was_sampled() -> None:
    entry = "entry={stage: pairs, path: /home/me/pairs.jsonl}"
    spec = load_spec("quickstart", [entry, "prompts=null", "reward=null"])
    card = dataset_card(spec, PairFacts(1, 0, 1), {})
    assert "The pairs were given" in card and "sampled from" not in card
    assert "source: pairs.jsonl" in card and "/home/me" not in card
    assert [file["split"] for file in header(card)["configs"][0]["data_files"]] == ["train"]


def test_a_folder_that_is_called_like_a_hub_dataset_is_not_named_as_one(tmp_path: Path) -> None:
    sweep = sweep_with_pairs(tmp_path / "store")
    corpus = "prompts={type: dataset, dataset: data/imdb}"
    for identity, named in (("sha256-abc", None), (f"data/imdb@{SHA}", ["data/imdb"])):
        spec = load_spec("quickstart", [corpus, "name=small"])
        read = replace(sweep, spec=spec, inputs=replace(sweep.inputs, prompts=identity))
        with read.store.staging() as folder:
            (folder / "pairs").mkdir()
            pairs = sweep.store.fetch(sweep.path("pairs")) / "pairs.parquet"
            shutil.copyfile(pairs, folder / "pairs" / "pairs.parquet")
            manifest = new_manifest(read.fingerprints.pairs, len(PAIRS), 0.1)
            read.store.publish(read.path("pairs"), folder / "pairs", manifest)
        target = tmp_path / identity[:6] / "out"
        export_dataset(read, target)
        assert header((target / "README.md").read_text()).get("source_datasets") == named


@pytest.mark.parametrize(
    ("override", "said"),
    [("per_device_train_batch_size=4", "8 pairs"), ("prompts_per_batch=3", "6 prompts")],
)
def test_the_card_counts_a_batch_in_what_it_is_made_of(override: str, said: str) -> None:
    words = [f"training.{override}", "training.gradient_accumulation_steps=2"]
    card = model_card(facts(load_spec("quickstart", words)))
    assert f"| batch size | {said} |" in card.splitlines()
