"""Rows as people publish them are read, or refused with what was found and what to write."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.spec import FileText, PairsSpec
from prefsweep.workers.corpus import load_texts
from prefsweep.workers.entry import read_completions, read_pairs
from prefsweep.workers.entry import read_scored_completions as read_scored

from .entry_files import Pair, answer, entry, read, user, write

ALL = PairsSpec(test_fraction=0.0)


TALK = [user("Hi"), answer("Yes?"), user("A film?")]
HH = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: A film?\n\nAssistant:"
SHAPES: dict[str, tuple[dict[str, Any], dict[str, str], list[Pair]]] = {
    "lists without a prompt": (
        {"chosen": [*TALK, answer("Good.")], "rejected": [*TALK, answer("Bad.")]},
        {},
        [(TALK, "Good.", "Bad.")],
    ),
    "lists with the first question as prompt": (
        {"prompt": "Hi", "chosen": [*TALK, answer("Good.")], "rejected": [*TALK, answer("Bad.")]},
        {},
        [(TALK, "Good.", "Bad.")],
    ),
    "lists with a system message": (
        {
            "prompt": "A film?",
            "chosen": [{"role": "system", "content": "S"}, user("A film?"), answer("Good.")],
            "rejected": [{"role": "system", "content": "S"}, user("A film?"), answer("Bad.")],
        },
        {},
        [([{"role": "system", "content": "S"}, user("A film?")], "Good.", "Bad.")],
    ),
    "ShareGPT": (
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Yes?"},
                {"from": "human", "value": "A film?"},
            ],
            "chosen": {"from": "gpt", "value": "Good."},
            "rejected": {"from": "gpt", "value": "Bad."},
        },
        {},
        [(TALK, "Good.", "Bad.")],
    ),
    "other role names": (
        {
            "prompt": [{"role": "Human", "content": "Hi"}],
            "chosen": [{"role": "gpt", "content": "Good."}],
            "rejected": [{"role": "bot", "content": "Bad."}],
        },
        {},
        [([user("Hi")], "Good.", "Bad.")],
    ),
    "lists of roles and of contents": (
        {
            "prompt": {"role": ["user", "assistant", "user"], "content": ["Hi", "Yes?", "A film?"]},
            "chosen": {"from": ["gpt"], "value": ["Good."]},
            "rejected": "Bad.",
        },
        {},
        [(TALK, "Good.", "Bad.")],
    ),
    "text parts": (
        {
            "prompt": [user([{"type": "text", "text": "A "}, {"type": "text", "text": "film?"}])],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "Good."}]}],
            "rejected": "Bad.",
        },
        {},
        [([user("A film?")], "Good.", "Bad.")],
    ),
    "OpenAI": (
        {
            "input": {"messages": TALK, "tools": [], "parallel_tool_calls": True},
            "preferred_output": [answer("Good.")],
            "non_preferred_output": [answer("Bad.")],
        },
        {"prompt": "input", "chosen": "preferred_output", "rejected": "non_preferred_output"},
        [(TALK, "Good.", "Bad.")],
    ),
    "a column inside another": (
        {"input": {"messages": TALK}, "out": {"good": "Good.", "bad": {"text": "Bad."}}},
        {"prompt": "input.messages", "chosen": "out.good", "rejected": "out.bad.text"},
        [(TALK, "Good.", "Bad.")],
    ),
    "messages and a rejected response": (
        {"messages": [*TALK, answer("Good.")], "rejected_response": "Bad."},
        {},
        [(TALK, "Good.", "Bad.")],
    ),
    "transcripts": (
        {"chosen": f"{HH} Good.", "rejected": f"{HH} Bad."},
        {},
        [(TALK, "Good.", "Bad.")],
    ),
    "a transcript as prompt": (
        {"prompt": HH, "chosen": "Good.", "rejected": "Bad."},
        {},
        [(TALK, "Good.", "Bad.")],
    ),
    "instruction and input": (
        {"instruction": "Add.", "input": "1 2", "chosen": "3", "rejected": "4"},
        {},
        [("Add.\n1 2", "3", "4")],
    ),
    "instruction and history": (
        {"instruction": "A film?", "input": "", "history": [["Hi", "Yes?"]]}
        | {"chosen": "Good.", "rejected": "Bad."},
        {},
        [(TALK, "Good.", "Bad.")],
    ),
    "messages in a CSV cell": (
        {"prompt": json.dumps([{"from": "human", "value": "Hi"}])}
        | {"chosen": json.dumps([answer("Good.")]), "rejected": json.dumps([answer("Bad.")])},
        {},
        [([user("Hi")], "Good.", "Bad.")],
    ),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_common_shapes_of_pairs_are_read(shape: str, suffix: str, tmp_path: Path) -> None:
    row, columns, expected = SHAPES[shape]
    path = write(tmp_path, [row], suffix)
    assert read(entry("pairs", path, columns=columns), chat=True) == expected


def test_transcripts_are_split_at_the_last_answer_they_share(tmp_path: Path) -> None:
    shared, other = "\n\nHuman: Hi\n\nAssistant:", "\n\nHuman: Hi"
    rows = [
        {"chosen": f"{HH} Good.", "rejected": f"{HH} Bad."},
        {"chosen": f"{shared} A.\n\nHuman: B\n\nAssistant: C", "rejected": f"{shared} Z."},
    ]
    path = write(tmp_path, rows)
    assert read(entry("pairs", path)) == [
        (HH, " Good.", " Bad."),
        (shared, " A.\n\nHuman: B\n\nAssistant: C", " Z."),
    ]
    chat, notes = read_pairs(entry("pairs", path), ALL, chat=True)
    assert len(chat) == 1 and notes["dropped: answer of several turns"] == 1
    path = write(tmp_path, [{"chosen": f"{other} a{shared}", "rejected": f"{other} b{shared}"}])
    with pytest.raises(DataError, match=r"row 1: .* a transcript that shares no turn with chosen"):
        read(entry("pairs", path))


def test_one_row_for_each_completion_is_gathered(tmp_path: Path) -> None:
    columns = {"prompt": "input", "completions": "output", "scores": "reward"}
    texts = [" good", "[1, 2] bad", ' ["so"].']
    rows = [
        {"input": name, "output": text, "reward": i - 1.5}
        for i, text in enumerate(texts)
        for name in "ab"
    ]
    for suffix in (".jsonl", ".csv", ".parquet"):
        spec = entry("scored_completions", write(tmp_path, rows, suffix), columns=columns)
        scored, _ = read_scored(spec)
        assert [(s.prompt, s.text, s.score) for s in scored] == [
            (name, text, i - 1.5) for name in "ab" for i, text in enumerate(texts)
        ]
    talks = [
        {"prompt": [user("Hi")], "completions": [answer(t)], "scores": i}
        for i, t in enumerate("xy")
    ]
    scored, _ = read_scored(entry("scored_completions", write(tmp_path, talks)), chat=True)
    assert [(s.text, s.score) for s in scored] == [("x", 0), ("y", 1)]
    plain = [{"prompt": "a", "completions": text} for text in (" x", " y")]
    assert len(read_completions(entry("completions", write(tmp_path, plain)))[0]) == 2


def test_scores_inside_completions_are_read_by_their_names(tmp_path: Path) -> None:
    row = {
        "instruction": "Hi",
        "completions": [{"text": " a", "rating": 1}, {"text": " b", "rating": "2"}],
    }
    columns = {"completions": "completions.text", "scores": "completions.rating"}
    for suffix in (".jsonl", ".parquet"):
        row["completions"][1]["rating"] = 2 if suffix == ".parquet" else "2"  # pyright: ignore
        spec = entry("scored_completions", write(tmp_path, [row], suffix), columns=columns)
        assert [(s.prompt, s.text, s.score) for s in read_scored(spec)[0]] == [
            ("Hi", " a", 1.0),
            ("Hi", " b", 2.0),
        ]


REFUSED: list[tuple[Callable[..., Any], str, dict[str, Any], str]] = [
    (read_scored, "scored_completions", {"completions": "['a' 'b']", "scores": "[ 0.5 -1. ]"},
     r"column 'completions' is .*, not a list \(in JSON\)"),
    (read_scored, "scored_completions", {"completions": '["a", "b"]', "scores": 1},
     "column 'scores' is 1, not a list"),
    (read_scored, "scored_completions", {"completions": "a", "scores": True},
     "column 'scores' is True, not a number"),
    (read_scored, "scored_completions", {"completion": "a", "label": True},
     r"Map it with entry\.columns=\{completions: completion\}"),
    (read_completions, "completions", {"completions": [{"text": "a"}, {"text": "b"}]},
     r"column 'completions'\[0\] is \{'text': 'a'\}, not a text"),
]  # fmt: skip


@pytest.mark.parametrize(("reader", "stage", "row", "message"), REFUSED)
def test_completions_in_no_list_are_refused_in_words(
    reader: Callable[..., Any], stage: str, row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, [{"prompt": "p"} | row])
    with pytest.raises(DataError, match=f"row 1: .*{message}"):
        reader(entry(stage, path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "completion": "b", "label": True}, "Rows with one completion and its"),
        ({"question": "a", "chosen": "b", "rejected": "c"}, r"columns=\{prompt: question\}"),
        ({" Prompt": "a", "chosen": "b", "rejected": "c"}, r'columns=\{prompt: " Prompt"\}'),
        ({"chosen": "a b", "rejected": "a c"}, "both answers must begin with the prompt: as lists"),
        ({"prompt": "a", "chosen_response": "b"}, r"columns=\{chosen: chosen_response\}"),
        ({"chosen": [user("a"), answer("b")], "rejected": [user("c"), answer("d")]},
         "column 'rejected' has other messages before the last one than chosen has"),
        ({"prompt": [user("a"), answer("b")], "chosen": "c", "rejected": "d"},
         "column 'prompt' ends with a message of the assistant; a prompt must end with a user"),
        ({"chosen": [answer("b"), answer("c")], "rejected": [answer("b"), answer("d")]},
         "has a message of the assistant before the last"),
    ],
)  # fmt: skip
def test_pairs_of_another_shape_are_answered_with_what_to_write(
    row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"row 1: .*{message}"):
        read_pairs(entry("pairs", write(tmp_path, [row])), ALL, chat=True)


def test_lists_of_messages_need_a_chat(tmp_path: Path) -> None:
    for row in (
        {"chosen": [*TALK, answer("Good.")], "rejected": [*TALK, answer("Bad.")]},
        {"prompt": "a", "chosen": json.dumps([answer("b")]), "rejected": "c"},
    ):
        with pytest.raises(DataError, match=r"is a list of messages, not a text; set policy\.chat"):
            read_pairs(entry("pairs", write(tmp_path, [row])), ALL)


def test_a_corpus_may_lie_in_a_packed_file_and_inside_a_column(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("one\u2028x\n\ntwo\n".encode()))
    rows = load_texts(FileText(type="file", path=str(tmp_path / "a.txt.gz")))
    assert [row.text for row in rows] == ["one\u2028x", "two"]
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"meta": {"text": "a", "n": 1}}, {"meta": {"text": "b", "n": 2}}]))
    inside = FileText(type="file", path=str(path), column="meta.text", where={"meta.n": 2})
    assert [row.text for row in load_texts(inside)] == ["b"]
