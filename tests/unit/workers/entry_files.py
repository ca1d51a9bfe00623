"""Rows -> a file of them, and the `entry` section that names it."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefsweep.sweeps.entry import EntrySpec
from prefsweep.sweeps.spec import PairsSpec
from prefsweep.workers.entry import read_pairs

Pair = tuple[Any, str, str]
"""Prompt (a text or messages), chosen, rejected."""


def write(folder: Path, rows: list[dict[str, Any]], suffix: str = ".jsonl") -> Path:
    path = folder / f"data{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(rows[0])
            for row in rows:
                cells = row.values()
                writer.writerow([json.dumps(c) if isinstance(c, list) else c for c in cells])
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def entry(stage: str, path: Path, **fields: Any) -> EntrySpec:
    return EntrySpec.model_validate({"stage": stage, "path": str(path), **fields})


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(spec: EntrySpec, *, chat: bool = False) -> list[Pair]:
    """The pairs of the data, none of them held out."""

    def prompt(text: str) -> Any:
        return json.loads(text) if text.startswith("[") else text

    pairs = read_pairs(spec, PairsSpec(test_fraction=0.0), chat=chat)[0]
    return [(prompt(p.prompt), p.chosen, p.rejected) for p in pairs]
