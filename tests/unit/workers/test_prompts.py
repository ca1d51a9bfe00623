from pathlib import Path

import pytest

from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.spec import (
    BuiltinPrompts,
    FilePrompts,
    FirstTokens,
    FirstWords,
    UnconditionalPrompts,
)
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_tokenizer
from prefsweep.workers.prompts import make_prompts

NOWHERE = ModelSource(path="/nowhere")


def file_of(folder: Path, *texts: str) -> str:
    path = folder / "texts.txt"
    path.write_text("\n".join(texts))
    return str(path)


def test_training_prompts_come_first_and_no_prompt_is_in_both(tmp_path: Path) -> None:
    path = file_of(tmp_path, "one", "two", "two", "three", "four", "one", "five")
    spec = FilePrompts(type="file", path=path, num_train=3, num_eval=2)
    train, held_out = make_prompts(spec, NOWHERE)
    assert [p.text for p in train] == ["one", "two", "three"]
    assert [p.text for p in held_out] == ["four", "five"]


def test_more_held_out_prompts_leave_the_training_prompts_alone() -> None:
    few = BuiltinPrompts(num_texts=200, num_train=40, num_eval=10, shuffle_seed=3)
    more = few.model_copy(update={"num_eval": 30})
    train, held_out = make_prompts(few, NOWHERE)
    train_again, more_held_out = make_prompts(more, NOWHERE)
    assert train == train_again
    assert more_held_out[:10] == held_out


def test_without_num_train_all_the_rest_is_for_training(tmp_path: Path) -> None:
    path = file_of(tmp_path, *"abcdefg")
    train, held_out = make_prompts(FilePrompts(type="file", path=path, num_eval=2), NOWHERE)
    assert "".join(p.text for p in train) == "abcde"
    assert "".join(p.text for p in held_out) == "fg"


def test_a_shuffle_is_fixed_by_its_seed(tmp_path: Path) -> None:
    path = file_of(tmp_path, *"abcdefghij")
    spec = FilePrompts(type="file", path=path, num_eval=2, shuffle_seed=1)
    assert make_prompts(spec, NOWHERE) == make_prompts(spec, NOWHERE)
    assert "".join(p.text for p in make_prompts(spec, NOWHERE)[0]) != "abcdefgh"


def test_take_cuts_sentences_words_and_tokens(tmp_path: Path, policy_source: ModelSource) -> None:
    path = file_of(tmp_path, "A good film. Really.", "We saw it. Twice.")
    spec = FilePrompts(type="file", path=path, num_eval=1)

    def first(take: object) -> str:
        return make_prompts(spec.model_copy(update={"take": take}), policy_source)[0][0].text

    assert first("first_sentence") == "A good film"
    assert first(FirstWords(first_words=2)) == "A good"
    tokenizer = load_tokenizer(policy_source)
    ids = tokenizer("A good film. Really.", add_special_tokens=False)["input_ids"]
    assert first(FirstTokens(first_tokens=3)) == tokenizer.decode(ids[:3])


def test_too_few_prompts_are_refused_with_the_counts(tmp_path: Path) -> None:
    spec = FilePrompts(type="file", path=file_of(tmp_path, "a", "a", "b"), num_train=5, num_eval=2)
    with pytest.raises(DataError, match=r"2 distinct prompts.*3 texts.*num_train=5.*num_eval=2"):
        make_prompts(spec, NOWHERE)


def test_texts_are_chosen_by_their_whole_length(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a b", "a b c", "a b c d", "x y z w v", "a b c d e f")
    spec = FilePrompts(
        type="file", path=path, min_chars=5, max_chars=9, num_eval=1, take=FirstWords(first_words=2)
    )
    train, held_out = make_prompts(spec, NOWHERE)
    assert [p.text for p in train + held_out] == ["a b", "x y"]


def test_draws_without_a_prompt_are_told_apart_by_their_ids() -> None:
    spec = UnconditionalPrompts(type="unconditional", num_train=30, num_eval=5)
    train, held_out = make_prompts(spec, NOWHERE)
    assert (len(train), len(held_out)) == (30, 5)
    assert len({p.prompt_id for p in train + held_out}) == 35
    assert {p.text for p in train + held_out} == {""}
    more = make_prompts(spec.model_copy(update={"num_eval": 9}), NOWHERE)
    assert more[0] == train and more[1][:5] == held_out
