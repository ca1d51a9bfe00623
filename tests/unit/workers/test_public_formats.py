"""Data as people publish it is read, or refused with what was found and what to write."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefsweep.sweeps.entry import EntrySpec
from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.spec import FileText, PairsSpec
from prefsweep.workers.corpus import load_texts
from prefsweep.workers.entry import read_completions, read_pairs, read_prompts
from prefsweep.workers.entry import read_scored_completions as read_scored

from .entry_files import entry, write

ALL = PairsSpec(test_fraction=0.0)
ROWS = [{"prompt": f"p{i}", "chosen": " a\u2028b", "rejected": " c"} for i in range(3)]
Pair = tuple[Any, str, str]


@pytest.fixture(autouse=True)
def no_cache_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(spec: EntrySpec, *, chat: bool = False) -> list[Pair]:
    def prompt(text: str) -> Any:
        return json.loads(text) if text.startswith("[") else text

    return [(prompt(p.prompt), p.chosen, p.rejected) for p in read_pairs(spec, ALL, chat=chat)[0]]


# --- files ---------------------------------------------------------------------------------------


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


def frames(content: bytes) -> bytes:
    half = len(content) // 2
    return zstd(content[:half]) + zstd(content[half:])


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
ARRAY = json.dumps(ROWS, indent=1)
CSV = "prompt,chosen,rejected\n" + "".join(f"p{i}, a\u2028b, c\n" for i in range(3))
FILES: list[tuple[str, bytes]] = [
    ("a.jsonl", LINES.encode()),
    ("a.json", LINES.encode()),
    ("a.json", ARRAY.encode()),
    ("a.jsonl", ("\n" + ARRAY).encode("utf-8-sig")),
    ("a.json", ('{\n"data": ' + ARRAY + "}").encode()),
    ("a.jsonl.gz", gzip.compress(LINES.encode())),
    ("a.jsonl", gzip.compress(LINES.encode())),
    ("a.json.bz2", bz2.compress(ARRAY.encode())),
    ("a.jsonl.xz", lzma.compress(LINES.encode())),
    ("a.jsonl.zst", zstd(LINES.encode())),
    ("A.JSONL.ZST", frames(LINES.encode())),
    ("a.csv", CSV.encode()),
    ("a.csv.gz", gzip.compress(CSV.encode())),
    ("a.csv", CSV.replace(",", ";").encode("utf-8-sig")),
    ("a.csv", ("sep=;\r\n" + CSV.replace(",", ";").replace("\n", "\r\n")).encode()),
    ("a.csv", CSV.encode("utf-16")),
    ("a.tsv", CSV.replace(",", "\t").encode()),
    ("a.csv", CSV.replace(",", "\t").encode()),
]


@pytest.mark.parametrize(("name", "content"), FILES)
def test_files_are_read_by_what_they_are(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(entry("pairs", tmp_path / name)) == [(f"p{i}", " a\u2028b", " c") for i in range(3)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        ("a.csv", b"PK\x03\x04\x14", "is a zip archive or an Excel file; unpack it, or save it"),
        ("a.xlsx", b"PK\x03\x04\x14", r"the format \.xlsx is not known; .*; save it as CSV"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 99)[:-9], r"a\.jsonl\.gz: cannot be read: "),
        ("a.jsonl.zst", zstd(b"{}" * 99)[:-5], r"a\.jsonl\.zst: cannot be read: "),
        ("a.json", b'{\n"a": 1,\n"b": []}', r"is one JSON object with 'a', 'b'; give an array"),
        ("a.json", b'[{"prompt": "a"},\n {"prompt"}]', r"a\.json: not valid JSON: .* line 2"),
        ("a.json", b"[[1]]", r"row 1: \[1\] is not a JSON object"),
        ("a.parquet.gz", gzip.compress(b"PAR1"), r"the format \.parquet is not known|text files"),
    ],
)
def test_files_that_are_something_else_are_refused_in_words(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_pairs(entry("pairs", tmp_path / name), ALL)


def test_a_folder_as_path_and_a_file_as_dataset(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    with pytest.raises(DataError, match=r"path=.*: is a folder; give it as dataset="):
        read_prompts(entry("prompts", tmp_path))
    assert len(read(EntrySpec(stage="pairs", dataset=str(path)))) == 3


@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_of_save_to_disk_is_read(whole: bool, tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list([row | {"extra": 1} for row in ROWS])
    saved = (
        dataset if whole else datasets.DatasetDict({"train": dataset, "test": dataset.select([2])})
    )
    saved.save_to_disk(str(tmp_path / "saved"))

    def prompts(split: str) -> list[str]:
        spec = EntrySpec(stage="prompts", dataset=str(tmp_path / "saved"), split=split)
        return [prompt.text for prompt in read_prompts(spec)[0]]

    assert prompts("train") == ["p0", "p1", "p2"] and prompts("train[1:]") == ["p1", "p2"]
    if not whole:
        assert prompts("test") == ["p2"] and prompts("test+train[:1]") == ["p2", "p0"]
    with pytest.raises(DataError, match=r'dataset=.*, split=no: Unknown split "no"'):
        prompts("no")


def test_a_csv_reads_the_same_from_a_file_and_from_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    texts = ("None", "NA", "null", "nan", "7", "007", "1e5", "true", "2024-01-01", "")
    rows = [{"prompt": f"p{i}", "chosen": t, "rejected": f"{t}x"} for i, t in enumerate(texts)]
    path = write(folder, rows, ".csv")
    expected = [(f"p{i}", text, f"{text}x") for i, text in enumerate(texts)]
    assert read(entry("pairs", path)) == expected
    assert read(EntrySpec(stage="pairs", dataset=str(folder))) == expected


@pytest.mark.parametrize("score", [pa.float16(), pa.float32(), pa.int8(), pa.decimal128(5, 2)])
@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.string_view()])
def test_types_of_other_writers_are_read(
    score: pa.DataType, text: pa.DataType, tmp_path: Path
) -> None:
    good = Decimal("2.00") if pa.types.is_decimal(score) else 2
    table = pa.table(
        {
            "prompt": pa.array(["p"]).dictionary_encode(),
            "completions": pa.array([["a", "b"]], type=pa.large_list(text)),
            "scores": pa.array([[good, -good]], type=pa.list_(score)),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        scored, _ = read_scored(entry("scored_completions", tmp_path / name))
        assert [(s.text, s.score) for s in scored] == [("a", 2.0), ("b", -2.0)]


def test_objects_that_datasets_keeps_as_json_are_messages(tmp_path: Path) -> None:
    rows = [{"prompt": [user("Hi"), {"role": "user", "content": [{"type": "text", "text": "x"}]}]}]
    dataset = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
    dataset.to_parquet(str(tmp_path / "a.parquet"))
    prompts, _ = read_prompts(entry("prompts", tmp_path / "a.parquet"), chat=True)
    assert json.loads(prompts[0].text) == [user("Hi"), user("x")]


# --- rows ----------------------------------------------------------------------------------------

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
        ({"prompt": "a", "completion": "b", "label": True}, "Rows of one completion and its label"),
        ({"question": "a", "chosen": "b", "rejected": "c"}, r"columns=\{prompt: question\}"),
        ({" Prompt": "a", "chosen": "b", "rejected": "c"}, r'columns=\{prompt: " Prompt"\}'),
        ({"chosen": "a b", "rejected": "a c"}, "both answers begin with the prompt: as lists"),
        ({"prompt": "a", "chosen_response": "b"}, r"columns=\{chosen: chosen_response\}"),
        ({"chosen": [user("a"), answer("b")], "rejected": [user("c"), answer("d")]},
         "column 'rejected' has other messages before the last than chosen has"),
        ({"prompt": [user("a"), answer("b")], "chosen": "c", "rejected": "d"},
         "column 'prompt' ends with a message of the assistant; a prompt ends with one of the"),
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
