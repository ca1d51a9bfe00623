"""What is read is what the identity was made of, whatever a file's times and a cache say."""

import os
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefsweep.orchestrator.execution.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.tasks.stages import require_same
from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.spec import DatasetText, FileText
from prefsweep.workers.corpus import load_texts, source_identity
from prefsweep.workers.locations import file_sha256
from tests.integration.small import small_sweep

TYPED = (
    "---\nconfigs:\n- config_name: default\n  data_files: train.csv\ndataset_info:\n  features:\n"
    "  - name: text\n    dtype: string\n---\n"
)
"""A README whose types make `datasets` itself read the folder, through its cache."""


@pytest.fixture(autouse=True)
def no_cache_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def replace(path: Path, content: bytes) -> None:
    """Other content of the same length in the same file, at the same time of modification."""
    path.write_bytes(content)
    os.utime(path, (1_700_000_000, 1_700_000_000))


def parquet(text: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [text]}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("train.jsonl", b'{"text": "old"}\n', b'{"text": "new"}\n'),
        ("train.json", b'[{"text": "old"}]', b'[{"text": "new"}]'),
        ("train.csv", b"text\nold\n", b"text\nnew\n"),
        ("train.txt", b"old\n", b"new\n"),
        ("train.parquet", parquet("old"), parquet("new")),
        ("typed/train.csv", b"text\nold\n", b"text\nnew\n"),
    ],
)
def test_a_replaced_file_of_a_folder_is_read_anew(
    name: str, old: bytes, new: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True)
    if path.parent.name == "typed":
        (path.parent / "README.md").write_text(TYPED)
    corpus, read = DatasetText(type="dataset", dataset=str(path.parent)), list[str]()
    identities = set[str]()
    for content in (old, new):
        replace(path, content)
        identities.add(source_identity(corpus))
        read += [row.text for row in load_texts(corpus)]
    assert read == ["old", "new"] and len(identities) == 2


def test_a_hash_is_not_taken_from_before_a_file_was_replaced_in_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    replace(path, b"old")
    before = file_sha256(path)
    replace(path, b"new")
    assert file_sha256(path) != before


def test_a_hub_dataset_is_read_at_the_commit_of_its_identity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commits, read = iter(["a" * 40, "b" * 40, "b" * 40]), list[str]()
    cached = ""

    class Hub:
        """A hub whose newest commit is another one at each look."""

        def dataset_info(self, name: str, revision: str, timeout: float) -> Any:
            return type("Info", (), {"sha": next(commits)})

    def builder(name: str, config: str | None, revision: str) -> Any:
        read.append(revision)
        return type("Builder", (), {"info": datasets.DatasetInfo(), "hash": cached or revision})

    def load(name: str, config: str | None, *, split: str, revision: str) -> datasets.Dataset:
        read.append(revision)
        return datasets.Dataset.from_dict({"text": ["a"]})

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    monkeypatch.setattr(datasets, "load_dataset", load)
    corpus = DatasetText(type="dataset", dataset="owner/name")
    assert source_identity(corpus) == f"owner/name@{'a' * 40}"
    assert [row.text for row in load_texts(corpus)] == ["a"]
    assert read == ["b" * 40] * 2  # one commit, whatever comes after it
    cached = "c" * 40
    with pytest.raises(DataError, match=rf"the local cache has commit {cached}, not b.*unset"):
        load_texts(corpus)


def test_data_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefsweep.workers import entry as reader

    path = tmp_path / "pairs.jsonl"
    rows = [f'{{"prompt": "p{i}", "chosen": " a", "rejected": " b"}}\n' for i in range(20)]
    path.write_text("".join(rows))
    entry = f"entry={{stage: pairs, path: '{path}'}}"
    sweep = small_sweep(tmp_path / "runs", "prompts=null", "reward=null", entry)
    read_pairs = reader.read_pairs

    def read_and_change(*args: Any, **options: Any) -> Any:
        found = read_pairs(*args, **options)
        path.write_text("".join(rows[1:]))
        return found

    monkeypatch.setattr(reader, "read_pairs", read_and_change)
    with pytest.raises(DataError, match=r"pairs\.jsonl: it has changed"):
        run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources), until="pairs")
    assert sweep.store.manifest(sweep.path("pairs")) is None


def test_texts_that_change_while_they_are_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("a\n")
    corpus = FileText(type="file", path=str(path))
    identity = source_identity(corpus)
    require_same(corpus, identity, "prompts")
    path.write_text("b\n")
    with pytest.raises(DataError, match="prompts: its texts changed while they were read"):
        require_same(corpus, identity, "prompts")
