"""Writes and reads records as parquet files. Columns are the fields of the record type."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

Record = TypeVar("Record")

_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    list[int]: pa.list_(pa.int32()),
    list[float]: pa.list_(pa.float32()),
}


def write_records(
    records: Iterable[Any],
    record_type: type,
    path: Path,
    first: Mapping[str, Sequence[str]] | None = None,
) -> int:
    """Write `records`, all of `record_type`, as one parquet file; returns the number of rows.

    `first` are text columns that are written before those of the records.
    """
    rows = list(records)
    columns = {name: pa.array(values, type=pa.string()) for name, values in (first or {}).items()}
    columns |= {
        field.name: pa.array([getattr(row, field.name) for row in rows], type=_arrow(hint))
        for field, hint in _fields(record_type)
    }
    pq.write_table(pa.table(columns), path, compression="zstd")
    return len(rows)


def read_records(record_type: type[Record], paths: Sequence[Path]) -> list[Record]:
    """The records of one or more parquet files, in order.

    If an older file lacks a column, the field has its default.
    """
    names = [field.name for field, _ in _fields(record_type)]
    younger = {field.name for field, _ in _fields(record_type) if field.default is not MISSING}
    records: list[Record] = []
    for path in paths:
        with pq.ParquetFile(path) as file:  # without threads, which slow down small files
            there = set(file.schema_arrow.names)
            read = [name for name in names if name in there or name not in younger]
            columns = file.read(columns=read, use_threads=False).to_pydict()
        rows = zip(*(columns[name] for name in read), strict=True)
        records += [record_type(**dict(zip(read, row, strict=True))) for row in rows]
    return records


@cache
def _fields(record_type: type) -> list[tuple[Any, Any]]:
    hints = get_type_hints(record_type)
    return [(field, hints[field.name]) for field in fields(record_type)]


def _arrow(hint: Any) -> pa.DataType:
    if isinstance(hint, UnionType):  # float | None
        hint = next(member for member in get_args(hint) if member is not type(None))
    return _TYPES.get(hint, pa.string())  # Literals are strings
