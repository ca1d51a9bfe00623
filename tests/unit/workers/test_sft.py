import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from prefsweep.sweeps.errors import DataError, ModelError, SpecError, StageError
from prefsweep.sweeps.spec import BuiltinText, FileText, FineTuning
from prefsweep.workers.builtin import reviews
from prefsweep.workers.locations import ModelSource, file_sha256
from prefsweep.workers.sft import Labels, map_labels, train_classifier, train_policy

BRIEF = FineTuning(
    corpus=BuiltinText(num_texts=48),
    num_train_epochs=1,
    per_device_train_batch_size=8,
    learning_rate=3e-3,
    max_length=64,
)


def brief(**fields: Any) -> FineTuning:
    return BRIEF.model_copy(update=fields)


def corpus_of(folder: Path, rows: list[dict[str, Any]]) -> FileText:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return FileText(type="file", path=str(path))


def nll(folder: Path | str) -> float:
    """Mean negative log-likelihood of unseen reviews, nats a token."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer([r.text for r in reviews(20, seed=9)], padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        return model(**batch, labels=labels).loss.item()


# --- policy --------------------------------------------------------------------------------------


def test_training_lowers_the_loss_on_unseen_texts_and_prints_nothing(
    policy_source: ModelSource, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    metrics = train_policy(Path(policy_source.path), tmp_path / "policy", brief())
    assert capfd.readouterr() == ("", "")
    assert nll(tmp_path / "policy") < nll(policy_source.path) - 0.8
    assert metrics["steps"] == 6 and metrics["num_texts"] == 48
    assert 3 < metrics["train_loss"] < 7.2 and metrics["seconds"] > 0
    files = {path.name for path in (tmp_path / "policy").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not any(name.endswith((".bin", ".pt")) for name in files), "no pickles"


def test_the_same_seed_trains_the_same_weights_bit_for_bit(
    policy_source: ModelSource, tmp_path: Path
) -> None:
    weights: list[str] = []
    for run, seed in enumerate((0, 0, 1)):
        torch.manual_seed(run)  # what ran before must not matter
        train_policy(Path(policy_source.path), tmp_path / str(run), brief(seed=seed))
        weights.append(file_sha256(tmp_path / str(run) / "model.safetensors"))
    assert weights[0] == weights[1] != weights[2]


def test_the_policy_learns_to_end(policy_source: ModelSource, tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, [{"text": "I saw it."}] * 64)
    train_policy(
        Path(policy_source.path), tmp_path / "policy", brief(corpus=corpus, num_train_epochs=3)
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    with torch.no_grad():
        logits_TV = model(**tokenizer("I saw it.", return_tensors="pt")).logits[0]
    assert logits_TV[-1].argmax() == tokenizer.eos_token_id


def test_weights_are_saved_in_the_dtype_asked_for(
    policy_source: ModelSource, tmp_path: Path
) -> None:
    train_policy(Path(policy_source.path), tmp_path / "policy", brief(), dtype="bfloat16")
    weights = load_file(tmp_path / "policy" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_texts_longer_than_the_model_reads_are_cut(
    policy_source: ModelSource, classifier_source: ModelSource, tmp_path: Path
) -> None:
    rows = [{"text": f"word {i} " * 400, "label": i % 2} for i in range(8)]
    long = brief(corpus=corpus_of(tmp_path, rows), max_length=10_000)
    train_policy(Path(policy_source.path), tmp_path / "policy", long)
    train_classifier(Path(classifier_source.path), tmp_path / "classifier", long, 1)


def test_a_loss_that_is_not_finite_ends_the_stage(
    policy_source: ModelSource, tmp_path: Path
) -> None:
    base = broken_copy(Path(policy_source.path), tmp_path / "base")
    with pytest.raises(StageError, match=r"loss is nan at step \d+ of 6; lower learning_rate=0"):
        train_policy(base, tmp_path / "policy", brief())
    assert not (tmp_path / "policy" / "model.safetensors").exists()


def broken_copy(base: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for run in (
        lambda: train_policy(tmp_path / "empty", tmp_path / "out", brief()),
        lambda: train_classifier(tmp_path / "empty", tmp_path / "out", brief(), 1),
    ):
        with pytest.raises(ModelError, match=r"base model .*empty"):
            run()


# --- classifier ----------------------------------------------------------------------------------


def test_a_brief_training_beats_chance_and_repeats_bit_for_bit(
    classifier_source: ModelSource, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    training = brief(corpus=BuiltinText(num_texts=1200), learning_rate=2e-3)
    metrics = [
        train_classifier(Path(classifier_source.path), tmp_path / name, training, "POSITIVE")
        for name in "ab"
    ]
    assert capfd.readouterr() == ("", "")
    assert metrics[0]["accuracy"] == metrics[1]["accuracy"] > 0.7
    assert metrics[0]["num_held_out"] == 120 and metrics[0]["steps"] == 135
    a, b = (file_sha256(tmp_path / name / "model.safetensors") for name in "ab")
    assert a == b


@pytest.mark.parametrize(
    ("values", "label", "names"),
    [
        (("NEGATIVE", "POSITIVE"), "POSITIVE", ["NEGATIVE", "POSITIVE"]),
        ((0, 1), "POSITIVE", ["NEGATIVE", "POSITIVE"]),
        (("0", "1"), 1, ["NEGATIVE", "POSITIVE"]),
        (("good", "bad"), "good", ["bad", "good"]),
        (("c", "a", "b"), "a", ["a", "b", "c"]),
        ((0, 1, 2), "LABEL_2", ["LABEL_0", "LABEL_1", "LABEL_2"]),
    ],
)
def test_labels_of_the_corpus_become_those_of_the_model(
    values: tuple[str | int, ...],
    label: str | int,
    names: list[str],
    classifier_source: ModelSource,
    tmp_path: Path,
) -> None:
    rows = [{"text": f"{value} {i}", "label": value} for i in range(6) for value in values]
    training = brief(corpus=corpus_of(tmp_path, rows))
    train_classifier(Path(classifier_source.path), tmp_path / "out", training, label)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert [model.config.id2label[i] for i in range(len(names))] == names
    assert model.config.label2id == {name: i for i, name in enumerate(names)}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert model(**tokenizer("a", return_tensors="pt")).logits.shape == (1, len(names))


def test_a_language_model_with_no_pad_token_can_become_a_classifier(
    policy_source: ModelSource, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    GPT2LMHeadModel(GPT2Config(vocab_size=1200, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        base
    )
    tokenizer = AutoTokenizer.from_pretrained(policy_source.path)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(base)
    metrics = train_classifier(base, tmp_path / "out", brief(), "POSITIVE")
    assert 0 <= metrics["accuracy"] <= 1


def test_equal_texts_are_never_on_both_sides(
    classifier_source: ModelSource, tmp_path: Path
) -> None:
    rows = [{"text": f"text {i % 10}", "label": i % 2} for i in range(40)]
    training = brief(corpus=corpus_of(tmp_path, rows))
    metrics = train_classifier(Path(classifier_source.path), tmp_path / "out", training, 1)
    assert metrics["num_held_out"] == 4 and metrics["num_texts"] == 40


KNOWN = {0: "NEGATIVE", 1: "POSITIVE"}


def test_names_that_the_model_has_keep_its_ids() -> None:
    turned = {0: "POSITIVE", 1: "NEGATIVE"}
    labels = map_labels(["POSITIVE", "NEGATIVE", "NEGATIVE"], turned)
    assert labels == Labels(("POSITIVE", "NEGATIVE"), (0, 1, 1))
    assert map_labels([1, 0, 1], KNOWN) == Labels(("NEGATIVE", "POSITIVE"), (1, 0, 1))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", None], "text 2 of the corpus has no label; check label_column"),
        (["a", 1], "names and numbers as labels: 'a', 1"),
        (["a", "a"], "two labels or more; the corpus has 'a'"),
        ([0, 2], "indices must run from 0 without gaps; the corpus has 0, 2"),
        ([-1, 0, 1], "without gaps; the corpus has -1, 0, 1"),
    ],
)
def test_labels_that_make_no_classifier_are_refused(
    labels: list[str | int | None], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        map_labels(labels, KNOWN)


@pytest.mark.parametrize("label", ["GREAT", 2, -1])
def test_a_reward_label_that_the_classifier_lacks_is_refused(
    label: str | int, classifier_source: ModelSource, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=rf"reward\.label={label!r} .* NEGATIVE, POSITIVE"):
        train_classifier(Path(classifier_source.path), tmp_path / "out", brief(), label)


def test_one_text_cannot_be_split(classifier_source: ModelSource, tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, [{"text": "a", "label": 0}, {"text": "a", "label": 1}])
    with pytest.raises(DataError, match="two or more different texts"):
        train_classifier(
            Path(classifier_source.path), tmp_path / "out", brief(corpus=corpus), "POSITIVE"
        )
