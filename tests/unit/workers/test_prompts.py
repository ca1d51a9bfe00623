import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def split(folder: Path, texts: Sequence[str], **fields: Any) -> tuple[list[str], list[str]]:
    """The texts to train on, and the held-out ones."""
    spec = FilePrompts(type="file", path=file_of(folder, *texts), **fields)
    train, held_out = make_prompts(spec, NOWHERE)
    return [p.text for p in train], [p.text for p in held_out]


TEXTS = [f"text {i}" for i in range(400)]


def by_hash(text: str, fraction: float = 0.1) -> bool:
    """The published rule, written a second time."""
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    return int(hashlib.sha256(f"eval:{name}".encode()).hexdigest()[:8], 16) / 2**32 < fraction


def test_a_hash_of_the_prompt_says_whether_it_is_held_out(tmp_path: Path) -> None:
    train, held_out = split(tmp_path, [*TEXTS, *TEXTS], num_train=100, num_eval=20)
    assert train == [text for text in TEXTS if not by_hash(text)][:100]
    assert held_out == [text for text in TEXTS if by_hash(text)][:20]
    everything = split(tmp_path, TEXTS, num_eval=20, eval_fraction=0.25)[0]
    assert everything == [text for text in TEXTS if not by_hash(text, 0.25)]


@pytest.mark.parametrize("shuffle_seed", [None, 5])
def test_neither_appended_texts_nor_more_training_prompts_move_a_prompt_to_the_other_side(
    tmp_path: Path, shuffle_seed: int | None
) -> None:
    def both(texts: Sequence[str], num_train: int | None) -> tuple[set[str], set[str]]:
        fields = {"num_train": num_train, "num_eval": 20, "shuffle_seed": shuffle_seed}
        train, held_out = split(tmp_path, texts, **fields)
        return set(train), set(held_out)

    train, held_out = both(TEXTS[:300], 50)
    for texts, num_train in ((TEXTS, 50), (TEXTS, 300), (TEXTS, None), (TEXTS[::-1], 200)):
        more_train, more_held_out = both(texts, num_train)
        assert not more_train & held_out and not more_held_out & train


def test_what_one_side_lacks_the_other_gives_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for num_train, num_eval in ((60, 40), (97, 3), (None, 90)):
        train, held_out = split(tmp_path, TEXTS[:100], num_train=num_train, num_eval=num_eval)
        assert len(train) == (num_train or 10) and len(held_out) == num_eval
        assert len({*train, *held_out}) == len(train) + num_eval
        assert "would move if texts were appended" in caplog.text
        caplog.clear()


def test_more_held_out_prompts_leave_the_training_prompts_alone() -> None:
    few = BuiltinPrompts(num_texts=200, num_train=40, num_eval=10, shuffle_seed=3)
    more = few.model_copy(update={"num_eval": 30})
    train, held_out = make_prompts(few, NOWHERE)
    train_again, more_held_out = make_prompts(more, NOWHERE)
    assert train == train_again
    assert more_held_out[:10] == held_out


def test_a_shuffle_is_fixed_by_its_seed_and_leaves_the_sides_alone(tmp_path: Path) -> None:
    orders = [split(tmp_path, TEXTS, num_eval=20, shuffle_seed=seed) for seed in (None, 1, 1, 2)]
    assert orders[0] != orders[1] == orders[2] != orders[3]
    assert len({frozenset(train) for train, _ in orders}) == 1


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
