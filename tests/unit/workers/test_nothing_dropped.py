"""Nothing of your own data is dropped or ignored silently: it is used, or counted, or refused."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.spec import DatasetText, FilePrompts, PairsSpec, TrainingSpec
from prefsweep.workers.corpus import load_texts
from prefsweep.workers.entry import read_completions, read_pairs, read_scored_completions
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_policy, load_tokenizer
from prefsweep.workers.pairs import build_pairs
from prefsweep.workers.prompts import make_prompts
from prefsweep.workers.reference import is_cut, reference_pairs, uncut_pair, why_dropped

from .entry_files import entry, write
from .preference_data import preference_pairs

ALL = PairsSpec(test_fraction=0.0)
USER = {"role": "user", "content": "A film?"}
ASSISTANT = {"role": "assistant", "content": "Yes."}


def pair(**changes: Any) -> dict[str, Any]:
    return {"prompt": "A film", "chosen": " good", "rejected": " bad"} | changes


def pairs_of(folder: Path, *rows: dict[str, Any], spec: PairsSpec = ALL, **how: Any) -> Any:
    return read_pairs(entry("pairs", write(folder, list(rows))), spec, **how)


def refused(folder: Path, message: str, *rows: dict[str, Any], **how: Any) -> None:
    with pytest.raises(DataError, match=message):
        pairs_of(folder, *rows, **how)


# --- a prompt in several rows --------------------------------------------------------------------


def test_a_prompt_in_several_rows_keeps_all_its_completions(tmp_path: Path) -> None:
    rows = [
        {"prompt": prompt, "completions": [f" good {i}", " bad"], "scores": [i, -i]}
        for i in (1, 2, 3)
        for prompt in ("A film", "A book")
    ]
    path = write(tmp_path, [*rows, rows[0]])
    scored, notes = read_scored_completions(entry("scored_completions", path))
    assert [(s.sample_idx, s.score) for s in scored if s.prompt == "A film"] == [
        *enumerate((1.0, -1.0, 2.0, -2.0, 3.0, -3.0))
    ]
    assert notes["dropped: repeated completion"] == 2  # of the row that is there twice
    pairs, _ = build_pairs(scored, ALL)
    assert [(p.chosen, p.chosen_score, p.rejected_score) for p in pairs] == [(" good 3", 3, -3)] * 2
    completions, _ = read_completions(entry("completions", path))
    assert [c.text for c in completions] == [s.text for s in scored]


def test_a_prompt_with_one_completion_is_counted_or_refused(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "completions": " one", "scores": 1},
        {"prompt": "b", "completions": " two", "scores": 2},
        {"prompt": "b", "completions": " three", "scores": "3.5"},
    ]
    scored, notes = read_scored_completions(entry("scored_completions", write(tmp_path, rows)))
    assert [(s.prompt, s.text, s.score) for s in scored] == [("b", " two", 2), ("b", " three", 3.5)]
    assert notes["dropped: only completion of its prompt"] == 1
    for few in (rows[:2], [rows[0] | {"completions": [" one"], "scores": [1]}, *rows[1:]]):
        with pytest.raises(DataError, match=r"row 1: .* has one completion; a pair needs at least"):
            read_scored_completions(entry("scored_completions", write(tmp_path, few)))


# --- scores of pairs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ((5, 7), "chosen_score below rejected_score"),
        ((5, 5), "equal scores"),
        ((5, 4.9), "below min_margin"),
        ((5, 4), None),
        ((None, 9), None),
        ((5, ""), None),
    ],
)
def test_scores_decide_whether_a_pair_is_kept(
    scores: tuple[object, object], reason: str | None, tmp_path: Path
) -> None:
    kept = pair(prompt="another", chosen_score=2, rejected_score=1)
    row = pair(chosen_score=scores[0], rejected_score=scores[1])
    pairs, notes = pairs_of(tmp_path, kept, row, spec=PairsSpec(min_margin=1, test_fraction=0))
    assert len(pairs) == (2 if reason is None else 1)
    assert {n for n, count in notes.items() if n.startswith("dropped") and count} == (
        set() if reason is None else {f"dropped: {reason}"}
    )
    assert notes["pairs with both scores"] == (2 if scores == (5, 4) else 1)


def test_no_pair_left_is_refused_with_the_reasons(tmp_path: Path) -> None:
    rows = [pair(prompt=str(i), chosen_score=1, rejected_score=2) for i in range(9)]
    refused(tmp_path, r"no pair to train on \(.*chosen_score below rejected_score 9\)", *rows)
    needs = PairsSpec(min_margin=1, test_fraction=0)
    refused(tmp_path, r"pairs\.min_margin=1 needs the scores of a pair", pair(), spec=needs)


def test_oddities_that_are_kept_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        pair(chosen="A film good", rejected="A film bad"),
        pair(prompt="b"),
        pair(prompt="b", chosen=" bad", rejected=" good"),
    ]
    assert len(pairs_of(tmp_path, *rows)[0]) == 3
    assert "1 pairs repeat their prompt at the start of both answers" in caplog.text
    assert "2 pairs also occur with chosen and rejected swapped" in caplog.text


# --- pairs that are the same after max_length ----------------------------------------------------


def test_pairs_of_the_same_tokens_are_dropped_and_counted(policy_source: ModelSource) -> None:
    model, tokenizer = load_policy(policy_source), load_tokenizer(policy_source)
    first = preference_pairs()[0]
    same = replace(
        first, pair_id="same", chosen=" very" * 9 + " good", rejected=" very" * 9 + " bad"
    )
    full = replace(first, pair_id="full", prompt="word " * 40)
    spec = TrainingSpec(max_length=12)
    kept = reference_pairs([first, same, full], model, tokenizer, spec)
    assert [pair.pair_id for pair in kept] == [first.pair_id]
    assert why_dropped([same, full], tokenizer, spec) == {
        "dropped: prompt fills max_length": 1,
        "dropped: same tokens after max_length": 1,
    }
    wholes = [uncut_pair(each, tokenizer, spec) for each in (first, same, full)]
    assert [is_cut(whole, spec) for whole in wholes[1:]] == [True, False]
    assert not is_cut(wholes[0], TrainingSpec(max_length=64))
    longer = reference_pairs([same], model, tokenizer, TrainingSpec(max_length=64))
    assert longer[0].chosen_ids != longer[0].rejected_ids


# --- columns and fields that carry meaning -------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"system": ""}, None),
        ({"system": None}, None),
        ({"system": "Rhyme."}, [{"role": "system", "content": "Rhyme."}]),
        ({"system_prompt": "Rhyme."}, [{"role": "system", "content": "Rhyme."}]),
    ],
)
def test_a_system_column_is_the_system_message(
    row: dict[str, Any], prompt: list[dict[str, str]] | None, tmp_path: Path
) -> None:
    pairs, _ = pairs_of(tmp_path, pair() | row, chat=True)
    asked = [{"role": "user", "content": "A film"}]
    assert pairs[0].prompt == ("A film" if prompt is None else json.dumps(prompt + asked))
    of_messages = pair(prompt=[USER], chosen=[USER, ASSISTANT], rejected="No.") | row
    pairs, _ = pairs_of(tmp_path, of_messages, chat=True)
    assert json.loads(pairs[0].prompt) == [*(prompt or []), USER]


def test_two_system_messages_are_refused(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "Be brief."}, USER]
    same = pairs_of(tmp_path, pair(prompt=own, system="Be brief."), chat=True)[0][0]
    assert json.loads(same.prompt) == own
    row = pair(prompt=own, system="Rhyme.")
    refused(tmp_path, "row 1: column 'system' .* another system message", row, chat=True)


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
UNSAID: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "function"}]}, r"column 'tools' is .* tools, images and the like"),
    ({"tools": '[{"type": "function"}]'}, "column 'tools'"),
    ({"images": ["a.png"]}, "column 'images'"),
    ({"chat_template_kwargs": {"enable_thinking": False}}, "column 'chat_template_kwargs'"),
    (
        {"chosen": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]},
        r"column 'chosen'\[0\] is a message with tool_calls; tools and tool calls are not",
    ),
    (
        {"prompt": [USER, {"role": "tool", "content": "12"}, USER]},
        r"column 'prompt'\[1\] is a message of the role 'tool'",
    ),
    (
        {"prompt": json.dumps([USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}])},
        r"column 'prompt'\[1\] is a message with tool_calls",
    ),
    (
        {"rejected": [ASSISTANT | {"reasoning_content": "Hm."}]},
        r"column 'rejected'\[0\] has reasoning_content, which is not supported",
    ),
    (
        {"prompt": [USER | {"content": [{"type": "image_url", "image_url": "a.png"}]}]},
        r"column 'prompt'\[0\] has the content part .*; only text is supported",
    ),
    ({"prompt": [{"role": "narrator", "content": "x"}]}, r"\[0\] has the role 'narrator'; .*human"),
    ({"prompt": [{"role": "user", "content": None}]}, r"\[0\] has the content None, not a text"),
    (
        {"prompt": "[{'role': 'user', 'content': 'Hi'}]"},
        "in Python's notation; write lists",
    ),
    ({"chosen": "[{'role': 'assistant', 'content': 'Hi'}]"}, "in Python's notation"),
]


@pytest.mark.parametrize(("row", "message"), UNSAID)
def test_what_a_template_would_need_and_is_not_read_is_refused(
    row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    refused(tmp_path, f"row 2: {message}" if message.startswith("col") else message,
            pair(), pair() | row, chat=True)  # fmt: skip


def test_empty_fields_that_a_table_has_in_every_row_say_nothing(tmp_path: Path) -> None:
    none = {"tool_calls": None, "name": None, "reasoning_content": ""}
    row = pair(
        prompt=[USER | none], chosen=[ASSISTANT | none], rejected="No.", tools=[], images=None
    )
    pairs, _ = pairs_of(tmp_path, row, chat=True)
    assert json.loads(pairs[0].prompt) == [USER] and pairs[0].chosen == "Yes."


def test_columns_that_are_not_read_are_said_with_how_to_read_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [pair(score_chosen=2), pair(prompt="b", score_rejected=1, source="x")]
    for suffix in (".jsonl", ".parquet"):
        caplog.clear()
        path = write(tmp_path, rows, suffix)
        read_pairs(entry("pairs", path), ALL)
        assert "columns that are not read: score_chosen, score_rejected, source" in caplog.text or (
            suffix == ".parquet" and "columns that are not read: score_chosen" in caplog.text
        )
        assert "entry.columns={chosen_score: score_chosen" in caplog.text
    caplog.clear()
    read_pairs(entry("pairs", write(tmp_path, [pair()])), ALL)
    assert caplog.text == ""


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_columns_of_a_prompts_section_that_are_not_read_are_said(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"q": f"Film {i}?", "n": i, "system": "Rhyme."} for i in range(3)]
    path = write(tmp_path, rows, suffix)
    spec = FilePrompts(type="file", path=str(path), column="q", where={"n": 1})
    assert [row.text for row in load_texts(spec, messages=True)] == ["Film 1?"]
    assert caplog.messages == [f"{path}: columns that are not read: system"]


# --- names that are there twice, files that belong to no split -----------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"prompt,chosen,chosen,rejected\na,b,c,d\n"),
        ("a.csv", b"prompt;chosen;chosen;rejected\na;b;c;d\n"),
        ("a.tsv", b"prompt\tchosen\tchosen\trejected\na\tb\tc\td\n"),
        ("a.jsonl", b'{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}\n'),
        ("a.json", b'[{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}]'),
        ("a.jsonl", b'{"prompt": "a", "chosen": {"chosen": 1, "chosen": 2}, "rejected": "d"}\n'),
    ],
)
def test_a_column_or_key_that_is_there_twice_is_refused(
    name: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"the (column|key) 'chosen' occurs twice"):
        read_pairs(entry("pairs", tmp_path / name), ALL)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_two_columns_of_one_name_in_a_table_are_refused(suffix: str, tmp_path: Path) -> None:
    table, path = pa.table([["a"], ["b"], ["c"]], names=["text", "note", "note"]), tmp_path / "a"
    path = path.with_suffix(suffix)
    if suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    with pytest.raises(DataError, match="the column 'note' occurs twice; rename or remove one"):
        read_pairs(entry("pairs", path), ALL)


def test_columns_without_a_name_and_without_content_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected,,\na,b,c,,\n")
    assert len(read_pairs(entry("pairs", tmp_path / "a.csv"), ALL)[0]) == 1


def test_files_of_a_folder_that_are_in_no_split_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train.jsonl", "more.jsonl", "other.csv"):
        (folder / name).write_text('{"text": "a"}\n' if name != "other.csv" else "text\na\n")
    with caplog.at_level(logging.INFO):
        assert len(load_texts(DatasetText(type="dataset", dataset=str(folder)))) == 1
    assert "not read, in no split: more.jsonl, other.csv" in caplog.text


def test_texts_that_make_no_prompt_are_counted_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.jsonl"
    texts = ["one film", "two films", "one film", "", "  ", "a film that is too long to take"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    spec = FilePrompts(type="file", path=str(path), num_eval=1, max_chars=20)
    with caplog.at_level(logging.INFO):
        train, held_out = make_prompts(spec, ModelSource(path="/nowhere"))
    assert [prompt.text for prompt in train + held_out] == ["one film", "two films"]
    assert caplog.messages == [
        "prompts: dropped 1: shorter than min_chars or longer than max_chars",
        "prompts: dropped 2: blank text",
        "prompts: dropped 1: repeated prompt",
    ]


def test_tool_messages_in_a_prompts_section_are_refused_too(tmp_path: Path) -> None:
    talk = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    path = tmp_path / "a.jsonl"
    for value in (talk, json.dumps(talk)):
        path.write_text(json.dumps({"text": value}) + "\n")
        spec = FilePrompts(type="file", path=str(path), num_eval=1)
        with pytest.raises(DataError, match=r"row 1: column 'text' ?\[1\] is a message with tool_"):
            make_prompts(spec, ModelSource(path="/nowhere"))
