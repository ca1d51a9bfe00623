import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.spec import BuiltinPrompts, BuiltinText, DatasetText, FilePrompts, FileText
from prefsweep.workers.builtin import VERSION, reviews
from prefsweep.workers.corpus import Row, load_texts, source_identity

TABLE: list[dict[str, Any]] = [
    {"text": "one, two", "label": 1, "lang": "en"},
    {"text": 'a "quote"\nand a line', "label": 0, "lang": "de"},
    {"text": "漢字\u2028x", "label": 1, "lang": "en"},
]


@pytest.fixture(autouse=True)
def no_cache_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"rows{suffix}"
    match suffix:
        case ".csv":
            import csv

            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case _:
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def of_file(path: Path, **fields: Any) -> FileText:
    return FileText(type="file", path=str(path), **fields)


def of_dataset(place: Path | str, **fields: Any) -> DatasetText:
    return DatasetText(type="dataset", dataset=str(place), **fields)


# --- what is read --------------------------------------------------------------------------------


def test_built_in_texts_are_the_reviews() -> None:
    rows = load_texts(BuiltinText(num_texts=5, text_seed=3))
    assert [(row.text, row.label) for row in rows] == [(r.text, r.label) for r in reviews(5, 3)]


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".csv", ".parquet"])
def test_every_format_gives_the_same_rows(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path, suffix, TABLE)
    assert load_texts(of_file(path)) == [Row(row["text"], row["label"]) for row in TABLE]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("where", [{"label": 1}, {"lang": "en"}, {"label": 1.0, "lang": "en"}])
def test_where_keeps_rows_by_value(suffix: str, where: dict[str, Any], tmp_path: Path) -> None:
    rows = load_texts(of_file(write(tmp_path, suffix, TABLE), where=where))
    assert [row.text for row in rows] == ["one, two", "漢字\u2028x"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_where_reads_truth_values(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path, suffix, [{"text": "a", "ok": True}, {"text": "b", "ok": False}])
    assert load_texts(of_file(path, where={"ok": True})) == [Row("a", None)]


def test_columns_can_have_other_names(tmp_path: Path) -> None:
    path = write(tmp_path, ".jsonl", [{"review": "a", "stars": "good", "text": 3}])
    corpus = of_file(path, column="review", label_column="stars")
    assert load_texts(corpus) == [Row("a", "good")]


@pytest.mark.parametrize(
    ("label", "read"),
    [(1, 1), (1.0, 1), (True, 1), ("1", 1), ("good", "good"), ("", None), (None, None)],
)
def test_whole_numbers_are_indices_and_strings_names(
    label: object, read: object, tmp_path: Path
) -> None:
    path = write(tmp_path, ".jsonl", [{"text": "a", "label": label}])
    assert load_texts(of_file(path))[0].label == read


def test_a_text_file_has_one_text_a_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes("\ufefffirst\r\n\r\nsecond, with\u2028x\n".encode())
    assert load_texts(of_file(path)) == [Row("first", None), Row("second, with\u2028x", None)]


def test_a_long_csv_field_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, ".csv", [{"text": "long " * 40_000, "label": 1}])
    assert len(load_texts(of_file(path))[0].text) == 200_000


def test_prompts_are_read_like_a_corpus(tmp_path: Path) -> None:
    path = write(tmp_path, ".csv", TABLE)
    assert len(load_texts(FilePrompts(type="file", path=str(path)))) == 3
    assert len(load_texts(BuiltinPrompts(num_texts=4))) == 4


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_dataset_folder_is_read(
    suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    write(folder, suffix, TABLE)
    rows = load_texts(of_dataset(folder, where={"label": 1}))
    assert [(row.text, row.label) for row in rows] == [("one, two", 1), ("漢字\u2028x", 1)]
    assert load_texts(of_dataset(folder, split="train[:1]"))[0].text == "one, two"
    assert capfd.readouterr() == ("", "")


def test_class_labels_of_a_dataset_are_indices(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    dataset = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    (tmp_path / "corpus").mkdir()
    dataset.to_parquet(str(tmp_path / "corpus" / "train.parquet"))
    assert load_texts(of_dataset(tmp_path / "corpus")) == [Row("a", 1), Row("b", 0)]


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl, row 2: not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', r"row 2: \['b'\] is not a JSON object"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": 5}\n', r"row 3: column 'text' is 5, not a text"),
        ("a.jsonl", b'{"text": null}', r"row 1: column 'text' is None, not a text"),
        ("a.jsonl", rb'{"text": "\ud800"}', r"row 1: column 'text' is '\\ud800', not a text"),
        ("a.jsonl", b'{"body": "a", "stars": 1}', r"no column 'text'; the columns are body, stars"),
        ("a.jsonl", b"{}", r"no column 'text'; the columns are none"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl: not valid JSON"),
        ("a.jsonl", b'{"text": "a", "label": [1]}', r"row 1: label column 'label' is \[1\]"),
        ("a.jsonl", b'{"text": "a", "label": NaN}', r"row 1: label column 'label' is nan"),
        ("a.jsonl", b"", r"a\.jsonl: there are no texts"),
        ("a.jsonl", b'{"text": "\xff"}', r"a\.jsonl: not UTF-8 text \(byte 10 is 0xff\)"),
        ("a.csv", b"", r"a\.csv: there are no texts"),
        ("a.csv", b"text,label\n", r"a\.csv: there are no texts"),
        ("a.csv", b"text,label\na,1\nb\n", r"row 2: the number of fields differs from the header"),
        ("a.csv", b"text,label\na,1,2\n", r"row 1: the number of fields differs from the header"),
        ("a.csv", b'text,label\n"a,1\n', r"a\.csv, after line 1: not valid CSV"),
        ("a.csv", b"body\na\n", r"row 1: there is no column 'text'; the columns are body"),
        ("a.csv", b"\x89PNG\r\n\x1a\n\x00", r"a\.csv: not UTF-8 text"),
        ("a.parquet", b"", r"a\.parquet: not a readable parquet file"),
        ("a.parquet", b"PAR1 not really PAR1", r"a\.parquet: not a readable parquet file"),
        ("a.txt", b"\n \n", r"a\.txt: there are no texts"),
        ("a.txt", b"caf\xe9\n", r"a\.txt: not UTF-8 text \(byte 3 is 0xe9\)"),
        ("a.json", b"[]", r"a\.json: there are no texts"),
        (
            "a.xlsx",
            b"PK",
            r"the format \.xlsx is not supported; .*; save it as CSV or parquet",
        ),
        ("a", b"x", r"the format \(no suffix\) is not supported"),
    ],
)
def test_what_cannot_be_read_is_named(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_texts(of_file(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (load_texts, source_identity):
        with pytest.raises(DataError, match=r"path=.*nowhere\.csv: no such file"):
            read(of_file(tmp_path / "nowhere.csv"))


def test_a_parquet_file_without_the_column_is_answered_with_its_columns(tmp_path: Path) -> None:
    path = write(tmp_path, ".parquet", [{"body": "a", "stars": 1}])
    with pytest.raises(DataError, match="no column 'text'; the columns are body, stars"):
        load_texts(of_file(path))
    path = write(tmp_path, ".parquet", [{"text": 1.5}])
    with pytest.raises(DataError, match=r"row 1: column 'text' is 1\.5, not a text"):
        load_texts(of_file(path))


def test_where_that_keeps_nothing_or_names_no_column_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, ".jsonl", TABLE)
    with pytest.raises(DataError, match=r"there are no texts where \{'label': 7\}"):
        load_texts(of_file(path, where={"label": 7}))
    with pytest.raises(DataError, match="no column 'stars'; the columns are text, label, lang"):
        load_texts(of_file(path, where={"stars": 7}))
    text = tmp_path / "lines.txt"
    text.write_text("a")
    with pytest.raises(DataError, match=r"needs columns, a \.txt file has none"):
        load_texts(of_file(text, where={"label": 1}))


def test_a_dataset_without_the_column_is_answered_with_its_columns(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    write(tmp_path / "corpus", ".jsonl", [{"body": "a", "stars": 1}])
    with pytest.raises(DataError, match=r"row 1: .*no column 'text'; the columns are body, stars"):
        load_texts(of_dataset(tmp_path / "corpus"))


@pytest.mark.parametrize("content", [b"\x00\x01garbage", b'{"text": "a"}\n{"text": {"b": [1]}}\n'])
def test_a_damaged_dataset_folder_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "rows.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="corpus"):
        load_texts(of_dataset(tmp_path / "corpus"))


def test_an_empty_dataset_folder_or_a_wrong_split_is_named(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    with pytest.raises(DataError, match=r"dataset=.*corpus, split=train: "):
        load_texts(of_dataset(tmp_path / "corpus"))
    write(tmp_path / "corpus", ".jsonl", TABLE)
    with pytest.raises(DataError, match=r"split=nowhere: .*nowhere"):
        load_texts(of_dataset(tmp_path / "corpus", split="nowhere"))


def test_offline_a_hub_dataset_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for read in (load_texts, source_identity):
        with pytest.raises(DataError, match=r"dataset=nobody/nothing.*Unset HF_HUB_OFFLINE, or"):
            read(of_dataset("nobody/nothing"))
    with pytest.raises(DataError, match="dataset=not an id"):
        source_identity(of_dataset("not an id"))


# --- identity ------------------------------------------------------------------------------------


def test_identity_of_built_in_texts_is_version_count_and_seed() -> None:
    identity = source_identity(BuiltinText(num_texts=5, text_seed=3))
    assert identity == f"builtin-{VERSION}-5-3"
    assert identity != source_identity(BuiltinText(num_texts=5, text_seed=4))


def test_identity_of_a_file_is_its_content(tmp_path: Path) -> None:
    path = write(tmp_path, ".jsonl", TABLE)
    before = source_identity(of_file(path))
    moved = path.rename(tmp_path / "moved.jsonl")
    assert source_identity(of_file(moved)) == before
    write(tmp_path, ".jsonl", TABLE[:2]).rename(moved)
    assert source_identity(of_file(moved)) != before


def test_identity_of_a_folder_is_its_content_and_the_names_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    write(folder, ".jsonl", TABLE)
    before = source_identity(of_dataset(folder))
    assert source_identity(of_dataset(folder.rename(tmp_path / "moved"))) == before
    (tmp_path / "moved" / "rows.jsonl").rename(tmp_path / "moved" / "other.jsonl")
    assert source_identity(of_dataset(tmp_path / "moved")) != before


def test_identity_of_a_hub_dataset_is_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    assert source_identity(of_dataset("a/b", revision=commit)) == f"a/b@{commit}"
    refs = tmp_path / "datasets--a--b" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert source_identity(of_dataset("a/b")) == f"a/b@{commit}"


def test_the_module_imports_neither_datasets_nor_pyarrow_nor_torch() -> None:
    code = (
        "import sys, prefsweep.workers.corpus;"
        "print([m for m in ('datasets', 'pyarrow', 'torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_of_300_000_columns_the_first_are_named(tmp_path: Path) -> None:
    row = {f"column_{n}": "x" for n in range(300_000)} | {"y" * 10_000: "x"}
    path = tmp_path / "wide.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"column_19 and 299981 more$") as caught:
        load_texts(of_file(path))
    assert len(str(caught.value)) < 1000
