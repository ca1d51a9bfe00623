import hashlib
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from prefsweep.sweeps.errors import ModelError
from prefsweep.workers import review_grammar as grammar
from prefsweep.workers.builtin import (
    BUILTIN_MODELS,
    VERSION,
    VOCAB_SIZE,
    reviews,
    write_base_model,
)
from prefsweep.workers.locations import ModelSource, file_sha256

REVIEWS = reviews(2000, seed=0)


@pytest.fixture(scope="session")
def tokenizers(
    policy_source: ModelSource, classifier_source: ModelSource
) -> dict[str, PreTrainedTokenizerBase]:
    return {
        "tiny-gpt2": AutoTokenizer.from_pretrained(policy_source.path),
        "tiny-classifier": AutoTokenizer.from_pretrained(classifier_source.path),
    }


def opening(text: str) -> str:
    return " ".join(text.split()[:4])


def test_the_same_seed_writes_the_same_reviews_and_another_seed_others() -> None:
    assert reviews(50, seed=3) == reviews(50, seed=3)
    assert reviews(50, seed=3)[:20] == reviews(20, seed=3)
    assert reviews(50, seed=3) != reviews(50, seed=4)


def test_version_stands_for_what_is_written() -> None:
    text = "\n".join(f"{review.label} {review.text}" for review in reviews(200, seed=0))
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert (VERSION, digest) == ("1", "6396d9d90c42"), "the reviews changed: bump builtin.VERSION"


def test_reviews_are_two_or_three_short_sentences() -> None:
    for review in REVIEWS:
        assert review.text.endswith(".") and review.text.count(".") in (2, 3)
        assert 10 <= len(review.text.split()) <= 45


def test_labels_are_balanced_and_the_vocabulary_is_small() -> None:
    positive = sum(review.label == "POSITIVE" for review in REVIEWS)
    assert 0.45 < positive / len(REVIEWS) < 0.55
    words = {word.strip(".,").lower() for review in REVIEWS for word in review.text.split()}
    assert len(words) < 700


def test_openings_are_several_hundred() -> None:
    assert len({opening(review.text) for review in reviews(1000, seed=1)}) > 430


def test_openings_say_nothing_about_the_label() -> None:
    positive: defaultdict[str, list[bool]] = defaultdict(list)
    for review in reviews(20_000, seed=5):
        positive[opening(review.text)].append(review.label == "POSITIVE")
    for labels in positive.values():
        spread = 0.5 / len(labels) ** 0.5
        assert abs(sum(labels) / len(labels) - 0.5) < 4.5 * spread


def test_no_opinion_word_is_in_an_opening() -> None:
    opinions = {word for words in grammar.ADJECTIVES.values() for word in words}
    about_weather_or_people = {"cold", "warm"}
    for review in REVIEWS:
        words = set(opening(review.text).lower().split())
        assert not words & (opinions - about_weather_or_people)


def test_one_phrase_has_one_grade() -> None:
    for table in (grammar.ADJECTIVES, grammar.EFFECTS, grammar.VERDICTS, grammar.FEELINGS):
        assert sorted(table) == [-3, -2, -1, 1, 2, 3]
        phrases = [phrase for graded in table.values() for phrase in graded]
        assert len(phrases) == len(set(phrases))


def test_the_same_seed_writes_the_same_files_in_another_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from prefsweep.workers.builtin import *;"
        "[write_base_model(n, Path(sys.argv[1]) / n, seed=7) for n in BUILTIN_MODELS]"
    )
    there = tmp_path / "there"
    done = subprocess.run(
        [sys.executable, "-c", code, str(there)], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    for name in BUILTIN_MODELS:
        write_base_model(name, tmp_path / name, seed=7)
        assert hashes(tmp_path / name) == hashes(there / name)
        assert "model.safetensors" in hashes(there / name)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in folder.iterdir()}


def test_another_seed_writes_other_weights_and_leaves_the_random_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    write_base_model("tiny-gpt2", tmp_path / "a", seed=1)
    write_base_model("tiny-gpt2", tmp_path / "b", seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    a, b = hashes(tmp_path / "a"), hashes(tmp_path / "b")
    assert a["model.safetensors"] != b["model.safetensors"]
    assert a["tokenizer.json"] == b["tokenizer.json"]


@pytest.mark.parametrize("name", BUILTIN_MODELS)
@given(text=st.text())
def test_any_text_can_be_encoded_and_decoded(
    name: str, text: str, tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    tokenizer = tokenizers[name]
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text  # pyright: ignore


@pytest.mark.parametrize(
    "text", ["漢字 и ελληνικά", "👩‍🚀  two  spaces\ttab\n", "don't . , ;", "\x00\x7f"]
)
def test_uncommon_text_survives(text: str, tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    ids = tokenizers["tiny-gpt2"](text)["input_ids"]
    assert tokenizers["tiny-gpt2"].decode(ids) == text  # pyright: ignore


def test_every_word_of_a_review_is_one_token(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    tokenizer = tokenizers["tiny-gpt2"]
    assert 800 <= len(tokenizer) <= VOCAB_SIZE
    words = {" " + word.strip(".,") for review in REVIEWS for word in review.text.split()[1:]}
    assert [word for word in words if len(tokenizer.tokenize(word)) > 1] == []


def test_padding_is_a_token_of_its_own(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    for tokenizer in tokenizers.values():
        assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
        batch = tokenizer(["I saw it.", "I saw it at home."], padding=True)
        assert [sum(mask) for mask in batch["attention_mask"]] == [  # pyright: ignore
            len(tokenizer(text)["input_ids"])  # pyright: ignore
            for text in ("I saw it.", "I saw it at home.")
        ]


def test_padding_leaves_the_logits_alone(
    policy_source: ModelSource, classifier_source: ModelSource
) -> None:
    texts = ["I saw it.", "I saw this film at home and liked it."]
    for auto_class, source in (
        (AutoModelForCausalLM, policy_source),
        (AutoModelForSequenceClassification, classifier_source),
    ):
        model = auto_class.from_pretrained(source.path)
        tokenizer = AutoTokenizer.from_pretrained(source.path)
        alone = tokenizer(texts[:1], return_tensors="pt")
        padded = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            want = model(**alone).logits[0]
            got = model(**padded).logits[0][: len(want)]
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_the_classifier_has_the_labels_of_the_reviews(classifier_source: ModelSource) -> None:
    config = json.loads((Path(classifier_source.path) / "config.json").read_text())
    assert config["id2label"] == {"0": "NEGATIVE", "1": "POSITIVE"}


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"builtin:huge.*builtin:tiny-gpt2, builtin:tiny-cl"):
        write_base_model("huge", tmp_path, seed=0)  # pyright: ignore[reportArgumentType]
