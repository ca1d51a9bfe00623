"""The spellings of one prompt are never on both sides, and every row keeps its own."""

import csv
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from prefsweep.sweeps.entry import EntrySpec
from prefsweep.sweeps.records import prompt_id
from prefsweep.sweeps.spec import FilePrompts, PairsSpec
from prefsweep.workers.entry import held_out_prompts, read_completions, read_pairs, read_prompts
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.prompts import make_prompts

NOWHERE = ModelSource("/nowhere")
QUESTIONS = [f"Is the café number {i} good?" for i in range(20)]
SPLIT = PairsSpec(test_fraction=0.5)


def spellings(question: str) -> list[Any]:
    return [
        question,
        f"{question} ",
        question.replace(" ", "\n", 1),
        unicodedata.normalize("NFD", question),
        [{"role": "user", "content": question}],
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def entry(stage: Any, path: Path) -> EntrySpec:
    return EntrySpec(stage=stage, path=str(path))


def test_pairs_of_one_prompt_are_in_one_split_with_the_prompts_as_given(tmp_path: Path) -> None:
    rows = [
        {"prompt": prompt, "chosen": f"yes {i}", "rejected": "no"}
        for question in QUESTIONS
        for i, prompt in enumerate(spellings(question))
    ]
    pairs, notes = read_pairs(entry("pairs", write(tmp_path / "a.jsonl", rows)), SPLIT, chat=True)
    assert len(pairs) == len(rows) and len({pair.pair_id for pair in pairs}) == len(rows)
    assert {pair.split for pair in pairs} == {"train", "test"}
    assert len({(pair.prompt_id, pair.split) for pair in pairs}) == len(QUESTIONS)
    assert notes["prompts with pairs"] == len(QUESTIONS)
    given = {p if isinstance(p, str) else json.dumps(p) for q in QUESTIONS for p in spellings(q)}
    assert {pair.prompt for pair in pairs} == given


def test_a_prompt_that_is_spelled_twice_is_taken_once(tmp_path: Path) -> None:
    rows = [{"prompt": prompt} for question in QUESTIONS for prompt in spellings(question)]
    path = write(tmp_path / "a.jsonl", rows)
    prompts, notes = read_prompts(entry("prompts", path), chat=True)
    assert [prompt.text for prompt in prompts] == QUESTIONS
    assert notes == {"dropped: repeated prompt": 4 * len(QUESTIONS)}


def test_completions_of_one_prompt_are_together(tmp_path: Path) -> None:
    spelled = {"a b": ["1", "x"], "a  b": ["2", "x"]}
    rows = [{"prompt": prompt, "completions": texts} for prompt, texts in spelled.items()]
    completions, _ = read_completions(entry("completions", write(tmp_path / "a.jsonl", rows)))
    assert {c.prompt_id for c in completions} == {prompt_id("a b")}
    assert [c.sample_idx for c in completions] == [0, 1, 2, 3]
    assert [c.prompt for c in completions] == ["a b", "a b", "a  b", "a  b"]


@pytest.mark.parametrize("shuffle_seed", [None, 3])
def test_held_out_prompts_are_no_spelling_of_a_training_prompt(
    tmp_path: Path, shuffle_seed: int | None
) -> None:
    texts = [p if isinstance(p, str) else json.dumps(p) for q in QUESTIONS for p in spellings(q)]
    path = write(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    spec = FilePrompts(type="file", path=str(path), num_eval=8, shuffle_seed=shuffle_seed)
    train, held_out = make_prompts(spec, NOWHERE)
    assert (len(train), len(held_out)) == (12, 8)
    assert len({prompt_id(prompt.text) for prompt in train + held_out}) == 20
    other = [prompt_id(unicodedata.normalize("NFD", f" {p.text}\n")) for p in held_out[:3]]
    kept, notes = held_out_prompts(spec, NOWHERE, other)
    assert len(kept) == 5 and notes == {"dropped: prompt of the training data": 3}


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_line_ends_inside_csv_fields_are_kept(tmp_path: Path, line_end: str) -> None:
    rows = [
        {"prompt": f"Run\r\n{i}:\r", "chosen": "a\r\nb\n", "rejected": "10%\r20%"} for i in range(3)
    ]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        form: Any = {"lineterminator": line_end, "quoting": csv.QUOTE_ALL}
        table = csv.DictWriter(file, ["prompt", "chosen", "rejected"], **form)
        table.writeheader()
        table.writerows(rows)
    spec = PairsSpec(test_fraction=0)
    of_csv = read_pairs(entry("pairs", tmp_path / "a.csv"), spec)
    assert of_csv == read_pairs(entry("pairs", write(tmp_path / "a.jsonl", rows)), spec)
    given = [tuple(row.values()) for row in rows]
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in of_csv[0]] == given
