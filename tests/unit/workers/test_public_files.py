"""Files as people publish them are read, or refused with what was found and what to do."""

import bz2
import gzip
import json
import lzma
from decimal import Decimal
from pathlib import Path

import datasets
import datasets.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefsweep.sweeps.entry import EntrySpec
from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.spec import PairsSpec
from prefsweep.workers.entry import read_pairs, read_prompts
from prefsweep.workers.entry import read_scored_completions as read_scored

from .entry_files import entry, read, user, write

ALL = PairsSpec(test_fraction=0.0)
ROWS = [{"prompt": f"p{i}", "chosen": " a\u2028b", "rejected": " c"} for i in range(3)]


@pytest.fixture(autouse=True)
def no_cache_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


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
        ("a.csv", b"PK\x03\x04\x14", "is a zip archive or an Excel file; extract it, or save it"),
        ("a.xlsx", b"PK\x03\x04\x14", r"the format \.xlsx is not supported; .*; save it as CSV"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 99)[:-9], r"a\.jsonl\.gz: cannot be read: "),
        ("a.jsonl.zst", zstd(b"{}" * 99)[:-5], r"a\.jsonl\.zst: cannot be read: "),
        ("a.json", b'{\n"a": 1,\n"b": []}', r"is one JSON object with 'a', 'b'; use an array"),
        ("a.json", b'[{"prompt": "a"},\n {"prompt"}]', r"a\.json: not valid JSON: .* line 2"),
        ("a.json", b"[[1]]", r"row 1: \[1\] is not a JSON object"),
        (
            "a.parquet.gz",
            gzip.compress(b"PAR1"),
            r"the format \.parquet is not supported|text",
        ),
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
    with pytest.raises(DataError, match=r"path=.*: is a folder; use dataset="):
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
