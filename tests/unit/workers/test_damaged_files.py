"""Whatever is in a user's file or reference: records, or a SweepError that names the place."""

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.entry import EntrySpec, EntryStage
from prefsweep.sweeps.errors import DataError, SweepError, UsageError
from prefsweep.sweeps.spec import DatasetText, FileText, PairsSpec, PolicySpec
from prefsweep.workers.corpus import load_texts, source_identity
from prefsweep.workers.entry import (
    read_completions,
    read_pairs,
    read_prompts,
    read_scored_completions,
)
from prefsweep.workers.functions import load_function
from prefsweep.workers.locations import model_identity
from tests.unit.mutations import damaged_or_random

ROWS: list[dict[str, Any]] = [
    {
        "text": "one, two",
        "label": 1,
        "prompt": "A film",
        "completions": [" a", " b"],
        "scores": [0.5, -1],
        "chosen": " good",
        "rejected": " bad",
        "chosen_score": 1.5,
    },
    {
        "text": 'a "quote"\nand a line',
        "label": 0,
        "prompt": "漢字",
        "completions": ["", "\u2028x"],
        "scores": [1, 2.5],
        "chosen": "",
        "rejected": "y",
        "chosen_score": None,
    },
]
READERS: dict[EntryStage, Callable[..., Any]] = {
    "prompts": read_prompts,
    "completions": read_completions,
    "scored_completions": read_scored_completions,
    "pairs": lambda entry, chat: read_pairs(entry, PairsSpec(), chat=chat),
}
STAGES = st.sampled_from(list(READERS))
fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def no_cache_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def refused_by_name(read: Callable[[], Any], *places: str) -> None:
    """`read` gives something, or an error that names one of the places and is short."""
    try:
        read()
    except SweepError as error:
        assert any(place in str(error) for place in places), str(error)
        assert len(str(error)) < 2000


def whole(suffix: str) -> bytes:
    if suffix == ".parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(ROWS), buffer)
        return buffer.getvalue()
    if suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(ROWS[0])
        for row in ROWS:
            cells = row.values()
            writer.writerow([json.dumps(c) if isinstance(c, list) else c for c in cells])
        return text.getvalue().encode()
    if suffix == ".txt":
        return "one\r\n\ntwo, with\u2028x\n".encode()
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".txt"])
def test_a_damaged_file_is_read_or_refused_by_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"

    @fuzz
    @given(content=damaged_or_random([whole(suffix)]), stage=STAGES, chat=st.booleans())
    def check(content: bytes, stage: EntryStage, chat: bool) -> None:
        path.write_bytes(content)
        entry = EntrySpec(stage=stage, path=str(path))
        refused_by_name(lambda: READERS[stage](entry, chat=chat), str(path), "entry: ")
        text = FileText(type="file", path=str(path))
        refused_by_name(lambda: load_texts(text, messages=chat), str(path))
        where = FileText(type="file", path=str(path), where={"label": 1}, label_column="scores")
        refused_by_name(lambda: load_texts(where), str(path))

    check()


@pytest.mark.filterwarnings("ignore:.*unclosed file")  # by the library, where it gives up
@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO")
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".txt"])
def test_a_damaged_dataset_folder_is_read_or_refused_by_name(suffix: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    @settings(fuzz, max_examples=settings().max_examples // 10)
    @given(content=damaged_or_random([whole(suffix)]), stage=STAGES)
    def check(content: bytes, stage: EntryStage) -> None:
        (folder / f"train{suffix}").write_bytes(content)
        entry = EntrySpec(stage=stage, dataset=str(folder))
        refused_by_name(lambda: READERS[stage](entry, chat=False), str(folder), "entry: ")
        text = DatasetText(type="dataset", dataset=str(folder))
        refused_by_name(lambda: load_texts(text), str(folder))

    check()


CELLS: list[Any] = [
    *("a", "", None, True, 1, 2**60, 0.5, float("nan"), float("inf"), b"\xff", 10**30),
    *([], ["a", "b"], ["a", None], [1, 2], [float("nan"), 1.0], {"a": 1}, [["a"], ["b"]]),
    [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
    *({"role": "user", "content": "x"}, [{"role": "user"}], '["a", "b"]', "[1, 2]", "[" * 2000),
]
NAMES = ("text", "label", "prompt", "completions", "scores", "chosen", "rejected", "chosen_score")
RECORDS = st.lists(
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(CELLS)), min_size=1, max_size=3
)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_cells_of_any_type_are_read_or_refused_with_file_and_row(
    suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"rows{suffix}"

    def write(records: list[dict[str, Any]]) -> bool:
        try:
            if suffix == ".parquet":
                # of one row: a column of a parquet file has one type
                pq.write_table(pa.Table.from_pylist(records[:1]), path)
            else:
                lines = [json.dumps(record, default=repr) + "\n" for record in records]
                path.write_text("".join(lines))
        except (pa.ArrowException, OverflowError):
            return False  # parquet has no such column
        return True

    @fuzz
    @given(records=RECORDS, stage=STAGES, chat=st.booleans())
    def check(records: list[dict[str, Any]], stage: EntryStage, chat: bool) -> None:
        if write(records):
            entry = EntrySpec(stage=stage, path=str(path))
            refused_by_name(lambda: READERS[stage](entry, chat=chat), f"{path}", "entry: ")
            corpus = FileText(type="file", path=str(path), where={"scores": 1})
            refused_by_name(lambda: load_texts(corpus, messages=chat), str(path))

    check()


# --- references ----------------------------------------------------------------------------------

REFERENCES = st.sampled_from(
    [
        *("~nobody-of-that-name", "~nobody-of-that-name/x.jsonl", "a\0b", "a\0b.jsonl", "x" * 300),
        *(
            f"{'x' * 300}.csv",
            "folder.csv",
            "pipe.csv",
            "/dev/null",
            "/etc/passwd",
            "a@b",
            "a/",
            "//x",
        ),
        *(
            "package:",
            "package:.",
            "package:.x/y.csv",
            "package:os/x",
            "package:torch",
            "a/b",
            "a/b/c",
        ),
        *(
            "package:torch/../x.csv",
            "package:a b",
            "builtin:",
            "builtin:x",
            "http://x/y",
            "hf://a/b",
        ),
        *("s3://x", "file:///x", "-", "--x", ".x", "..x", "a:b", "train[:", "train[:200%]", "é"),
    ]
) | st.text(min_size=1, max_size=20).filter(lambda text: text.strip("./~\\ ") != "")


@pytest.fixture
def odd_files(tmp_path: Path) -> Path:
    """A folder where a file should be, and a dataset."""
    (tmp_path / "folder.csv").mkdir()
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(whole(".jsonl"))
    return folder


@fuzz
@given(reference=REFERENCES)
def test_any_reference_is_found_or_refused_by_name(odd_files: Path, reference: str) -> None:
    named = (reference, repr(reference)[1:-1], reference.strip(), reference.partition(":")[0])
    try:
        file = FileText(type="file", path=reference)
        dataset = DatasetText(type="dataset", dataset=reference)
        revision = DatasetText(type="dataset", dataset="a/b", revision=reference)
        policy = PolicySpec(model=reference)
    except ValueError:  # halves of characters
        return
    refused_by_name(lambda: source_identity(file), *named)
    refused_by_name(lambda: load_texts(file), *named)
    refused_by_name(lambda: source_identity(dataset), *named)
    refused_by_name(lambda: source_identity(revision), *named, "dataset=a/b")
    refused_by_name(lambda: model_identity(policy, "policy.model"), "policy.model", *named)
    for name in (reference, f"{reference}:x", f"os:{reference}"):
        refused_by_name(lambda name=name: load_function(name), "reward.function=")


@settings(fuzz, max_examples=settings().max_examples // 10)
@given(reference=REFERENCES)
def test_any_split_config_and_store_are_found_or_refused_by_name(
    odd_files: Path, reference: str
) -> None:
    try:
        split = DatasetText(type="dataset", dataset=str(odd_files), split=reference)
        config = DatasetText(type="dataset", dataset=str(odd_files), config=reference)
    except ValueError:
        return
    refused_by_name(lambda: load_texts(split), str(odd_files))
    refused_by_name(lambda: load_texts(config), str(odd_files))
    refused_by_name(lambda: Store(reference), "--storage")


def test_a_module_that_cannot_be_imported_is_refused_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_reward.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"broken_reward:f cannot be imported \(ZeroDiv"):
        load_function("broken_reward:f")
    with pytest.raises(UsageError, match="os:sep is a str, not a function"):
        load_function("os:sep")


def test_a_row_of_parquet_that_python_has_no_value_for_is_refused_with_its_number(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.parquet"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "rows.parquet").symlink_to(path)
    texts = pa.array([b"good"] * 3 + [b"\xff"] + [b"good"]).cast(pa.string(), safe=False)
    days = pa.array([0, 0, 2**62, 0, 0], type=pa.timestamp("ms"))
    where: dict[str, str | int | float | bool] = {"day": 5}
    for table, number in (
        ({"text": texts, "day": [5] * 5}, 4),
        ({"text": ["a"] * 5, "day": days}, 3),
    ):
        pq.write_table(pa.table(table), path)
        with pytest.raises(DataError, match=f"rows.parquet, row {number}: cannot be read"):
            load_texts(FileText(type="file", path=str(path), where=where))
        folder = str(tmp_path / "folder")
        with pytest.raises(DataError, match=f"row {number}: cannot be read"):
            load_texts(DatasetText(type="dataset", dataset=folder, where=where))


def test_a_dataset_with_a_file_that_cannot_be_read_is_refused_with_its_name(tmp_path: Path) -> None:
    for name, content, reason in (
        ("train.jsonl", b'{"text": "a"}\n{"text" "b"}\n', "train.jsonl, row 2: not valid JSON"),
        ("train.csv", b'text\n"a\nb', r"train\.csv, after line 1: not valid CSV"),
        ("train.parquet", b"PAR1PAR1", "train.parquet"),
        ("train.jsonl", b"", "there are no texts"),
    ):
        folder = tmp_path / os.urandom(4).hex()
        folder.mkdir()
        (folder / name).write_bytes(content)
        with pytest.raises(DataError, match=reason):
            load_texts(DatasetText(type="dataset", dataset=str(folder)))
