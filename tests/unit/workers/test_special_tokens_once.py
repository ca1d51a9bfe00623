"""A text has the token that begins it once and the token that ends it once, whoever writes them."""

from dataclasses import replace

import pytest

from prefsweep.sweeps.spec import ChatSpec, ClassifierReward, TrainingSpec
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_tokenizer
from prefsweep.workers.reference import tokenize_pair
from prefsweep.workers.rendering import finished_ids, rendered, token_ids
from prefsweep.workers.score import ClassifierScorer

from .chat_templates import FAMILIES, tokenizer_of
from .preference_data import preference_pairs

ADD_BOS = [name for name, family in FAMILIES.items() if family.adds_bos]
PAIR = replace(preference_pairs()[0], prompt="The film", chosen=" is good.", rejected=" is bad.")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("adds_eos", [False, True])
def test_a_prompt_never_has_an_end_and_a_completion_has_one(name: str, adds_eos: bool) -> None:
    family = FAMILIES[name]
    tokenizer, plain = tokenizer_of(family, adds_eos=adds_eos), tokenizer_of(family)
    eos = tokenizer.eos_token_id
    assert (tokenizer("x")["input_ids"][-1] == eos) == adds_eos  # pyright: ignore
    assert token_ids(tokenizer, "The film") == tuple(plain("The film")["input_ids"])  # pyright: ignore
    for chosen in (PAIR.chosen, PAIR.chosen + family.eos):
        pair = tokenize_pair(replace(PAIR, chosen=chosen), tokenizer, TrainingSpec())
        assert pair == tokenize_pair(PAIR, plain, TrainingSpec()) and pair is not None
        assert eos not in pair.prompt_ids
        assert pair.chosen_ids.count(eos) == pair.rejected_ids.count(eos) == 1
        assert pair.chosen_ids[-1] == pair.rejected_ids[-1] == eos


@pytest.mark.parametrize("name", ADD_BOS)
@pytest.mark.parametrize("before", ["", "\n", "  "])
@pytest.mark.parametrize("adds_eos", [False, True])
def test_a_template_that_was_applied_before_does_not_make_two_beginnings(
    name: str, before: str, adds_eos: bool
) -> None:
    tokenizer = tokenizer_of(FAMILIES[name], adds_eos=adds_eos)
    applied = before + rendered(tokenizer, "Is it good?", ChatSpec())
    ids = token_ids(tokenizer, applied)
    assert ids.count(tokenizer.bos_token_id) == 1  # pyright: ignore
    if not before and name != "zephyr":  # whose template does not write it
        assert ids == token_ids(tokenizer, "Is it good?", chat=ChatSpec())
    pair = tokenize_pair(replace(PAIR, prompt=applied), tokenizer, TrainingSpec())
    assert pair is not None and pair.prompt_ids == ids
    ends = [*pair.chosen_ids, *pair.rejected_ids].count(tokenizer.eos_token_id)  # pyright: ignore
    assert ends == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_without_a_prompt_begins_once(name: str) -> None:
    tokenizer = tokenizer_of(FAMILIES[name], adds_eos=True)
    first = tokenizer.bos_token_id or tokenizer.eos_token_id
    assert token_ids(tokenizer, "") == (first,)
    text = token_ids(tokenizer, "", "ab")
    assert text[:1] == (first,) and len(text) == 3


@pytest.mark.parametrize("name", ["llama3", "gemma", "chatml"])
@pytest.mark.parametrize("adds_eos", [False, True])
def test_a_text_to_fine_tune_on_begins_and_ends_once(name: str, adds_eos: bool) -> None:
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family, adds_eos=adds_eos)
    bare = tokenizer("ab", add_special_tokens=False)["input_ids"]
    start = [tokenizer.bos_token_id] if family.adds_bos else []
    for text in ("ab", f"ab{family.eos}", f"{family.bos if start else ''}ab"):
        assert list(finished_ids(tokenizer, text)) == [*start, *bare, tokenizer.eos_token_id]


def test_a_classifier_reads_the_beginning_of_a_rendered_text_once(
    classifier_source: ModelSource,
) -> None:
    start = str(load_tokenizer(classifier_source).bos_token)
    spec = ClassifierReward(type="classifier", model="tiny", label=1)
    scorer = ClassifierScorer(spec, classifier_source)
    plain = scorer.score(["A film"], [" is good."])
    assert scorer.score([f"{start}A film"], [" is good."]) == plain
    assert scorer.score(["A film"], [f" is{start} good."]) != plain
