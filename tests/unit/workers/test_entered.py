"""What becomes of entered data: prompts to evaluate with, and the pairs of scored completions."""

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.records import PreferencePair, prompt_id
from prefsweep.sweeps.spec import FilePrompts, PairsSpec
from prefsweep.workers.entry import (
    held_out_prompts,
    prompts_of_test_split,
    read_scored_completions,
)
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.pairs import build_pairs
from prefsweep.workers.prompts import make_prompts

from .entry_files import entry, write

RANKS = ((0, 3), (0, 4), (0, 5), (1, 5), (2, 5), (3, 5))
RULE = PairsSpec(rule="ranks", ranks=RANKS, test_fraction=0.2)

NOWHERE = ModelSource(path="/nowhere")


def prompts_file(folder: Path, texts: str, **fields: Any) -> FilePrompts:
    (folder / "prompts.txt").write_text("\n".join(texts))
    return FilePrompts(type="file", path=str(folder / "prompts.txt"), **fields)


@pytest.mark.parametrize(
    ("num_train", "num_eval", "held_out"),
    [(None, 2, None), (None, 5, "abcde"), (1, 2, None), (3, 2, None)],
)
def test_held_out_prompts_need_no_training_prompts_before_them(
    num_train: int | None, num_eval: int, held_out: str | None, tmp_path: Path
) -> None:
    spec = prompts_file(tmp_path, "abcde", num_train=num_train, num_eval=num_eval)
    prompts, notes = held_out_prompts(spec, NOWHERE, [])
    if held_out is None:  # those of a sweep that trains on others
        assert prompts == make_prompts(spec, NOWHERE)[1]
    else:
        assert {prompt.text for prompt in prompts} == {*held_out}
    assert notes == {"dropped: prompt of the training data": 0}


def test_held_out_prompts_are_none_of_the_data(tmp_path: Path) -> None:
    spec = prompts_file(tmp_path, "abcde", num_eval=3)
    first, *others = make_prompts(spec, NOWHERE)[1]
    prompts, notes = held_out_prompts(spec, NOWHERE, {first.prompt_id, prompt_id("x")})
    assert prompts == others
    assert notes == {"dropped: prompt of the training data": 1}
    with pytest.raises(DataError, match="all 3 held-out prompts occur in the data"):
        held_out_prompts(spec, NOWHERE, {prompt_id(text) for text in "abcde"})
    with pytest.raises(DataError, match="5 distinct prompts were found, but num_eval=6"):
        held_out_prompts(spec.model_copy(update={"num_eval": 6}), NOWHERE, [])


def test_prompts_of_the_test_split_are_those_that_no_training_pair_has() -> None:
    spec = PairsSpec(test_fraction=0.3, seed=5)
    prompts = {prompt_id(f"prompt {i}"): f"prompt {i}" for i in range(100)}
    expected = [key for key in prompts if in_test_split(key, 5, 0.3)]
    assert [p.prompt_id for p in prompts_of_test_split(prompts, spec, 1000)] == expected
    assert [p.prompt_id for p in prompts_of_test_split(prompts, spec, 7)] == expected[:7]
    with pytest.raises(DataError, match=r"raise pairs\.test_fraction=0 or add a prompts section"):
        prompts_of_test_split(prompts, PairsSpec(test_fraction=0), 5)


# --- the pairs of the first system ---------------------------------------------------------------


def in_test_split(key: str, seed: int, test_fraction: float) -> bool:
    digest = hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()
    return int(digest[:8], 16) / 2**32 < test_fraction


def independent_pairs(path: Path) -> dict[str, list[tuple[str, str, str]]]:
    """The rule written a second time, with nothing of the package: split -> (prompt, +, -)."""
    pairs: dict[str, list[tuple[str, str, str]]] = {"train": [], "test": []}
    merged: dict[str, tuple[list[str], list[float]]] = {}
    seen: set[str] = set()
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        row = json.loads(line)
        texts, scores = merged.setdefault(row["prompt"], ([], []))
        if line not in seen:
            texts += row["completions"]
            scores += row["scores"]
        seen.add(line)
    for prompt, (texts, scores) in merged.items():
        key = hashlib.sha256(prompt.encode()).hexdigest()[:16]
        split = "test" if in_test_split(key, 0, 0.2) else "train"
        order = sorted(range(len(scores)), key=lambda i, s=scores: (-s[i], i))
        for best, worst in RANKS:
            good, bad = order[best], order[worst]
            if scores[good] != scores[bad] and texts[good] != texts[bad]:
                pairs[split].append((prompt, texts[good], texts[bad]))
    return pairs


def our_pairs(path: Path) -> list[PreferencePair]:
    scored, _ = read_scored_completions(entry("scored_completions", path))
    return build_pairs(scored, RULE)[0]


def assert_same_pairs(path: Path) -> list[PreferencePair]:
    ours, theirs = our_pairs(path), independent_pairs(path)
    for split, expected in theirs.items():
        found = [(p.prompt, p.chosen, p.rejected) for p in ours if p.split == split]
        assert found == expected
    in_split = {split: {p.prompt for p in ours if p.split == split} for split in theirs}
    assert in_split["train"] and in_split["test"]
    assert in_split["train"].isdisjoint(in_split["test"])
    return ours


def test_entered_scores_give_the_pairs_of_an_independent_script(tmp_path: Path) -> None:
    """With ties, equal texts and repeated prompts."""
    draw = random.Random(0)
    rows = [
        {
            "prompt": f"prompt {draw.randrange(60)}",
            "completions": [f" text {draw.randrange(12)}" for _ in range(6)],
            "scores": [draw.randrange(8) / 4 for _ in range(6)],
        }
        for _ in range(90)
    ]
    assert_same_pairs(write(tmp_path, rows))


def test_the_first_system_s_scores_give_the_pairs_of_an_independent_script() -> None:
    folder = os.environ.get("PREFSWEEP_DATA")
    if folder is None:
        pytest.skip("PREFSWEEP_DATA does not name a folder with slic_hf/scored_completions.jsonl")
    pairs = assert_same_pairs(Path(folder) / "slic_hf" / "scored_completions.jsonl")
    num_test = sum(pair.split == "test" for pair in pairs)
    print(f"{len(pairs) - num_test} training pairs, {num_test} test pairs")
    assert len({pair.pair_id for pair in pairs}) == len(pairs)
