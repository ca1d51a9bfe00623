"""Rows -> a file of them, and the `entry` section that names it."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefsweep.sweeps.entry import EntrySpec


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
