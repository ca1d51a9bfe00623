"""Where texts come from, in; rows of text and label, or whole records, out.

Reads the built-in reviews, local files and Hugging Face datasets. It does not cut, shuffle or
tokenize (prompts.py and sft.py do). Rows are counted from 1, as an editor counts lines.
"""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.spec import (
    BuiltinText,
    DatasetText,
    FileText,
    Prompts,
    UnconditionalPrompts,
)
from prefsweep.workers import builtin
from prefsweep.workers.chat import as_messages
from prefsweep.workers.dataset import (
    BATCH_ROWS,
    Record,
    dataset_identity,
    dataset_records,
    first_line,
)
from prefsweep.workers.locations import file_sha256, local_path

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet", ".txt")
CSV_FIELD_LIMIT = 2**24
"""Characters a CSV field may have; Python's own limit of 128 Ki is short for whole documents."""


@dataclass(frozen=True, slots=True)
class Row:
    """A text, and its label where the source has one."""

    text: str
    label: str | int | None


def load_texts(
    corpus: BuiltinText | FileText | DatasetText, *, messages: bool = False
) -> list[Row]:
    """All rows of the corpus that its `where` keeps, in order.

    With `messages`, a list of chat messages is a text too: itself, as JSON.

    Raises DataError, naming the file, the row and the column, for what cannot be used.
    """
    if isinstance(corpus, BuiltinText):
        return [
            Row(review.text, review.label)
            for review in builtin.reviews(corpus.num_texts, corpus.text_seed)
        ]
    if isinstance(corpus, FileText) and (source := _local(corpus)).suffix.lower() == ".txt":
        rows = _text_lines(corpus, source)
    else:
        required = {corpus.column, *corpus.where}
        source, records = load_records(corpus, required, required | {corpus.label_column})
        rows = _select(corpus, records, source, messages=messages)
    if not rows:
        kept = f" where {dict(corpus.where)}" if corpus.where else ""
        raise DataError(f"{source}: there are no texts{kept}; the corpus needs at least one")
    return rows


def load_records(
    corpus: FileText | DatasetText, required: AbstractSet[str], wanted: AbstractSet[str]
) -> tuple[str, Iterable[tuple[int, Record]]]:
    """What to call the source in messages, and its records, each with its row number.

    Where the source has the `required` columns, columns that are not `wanted` may be left out.
    Raises DataError, some of it only while the records are read.
    """
    if isinstance(corpus, DatasetText):
        return f"dataset {corpus.dataset}", dataset_records(corpus, required, wanted)
    path = _local(corpus)
    match path.suffix.lower():
        case ".txt":
            raise DataError(f"{path}: a .txt file has no columns; give JSONL, CSV or parquet")
        case ".csv":
            return str(path), _csv_records(path)
        case ".parquet":
            return str(path), _parquet_records(path, required, wanted)
        case _:
            return str(path), _jsonl_records(path)


def source_identity(corpus: Prompts | BuiltinText | FileText | DatasetText) -> str:
    """What stands for the corpus's content in fingerprints; columns and `where` are not in it.

    Built in: version, count and seed. File or local folder: SHA-256. Hub: the commit. Raises
    DataError if there is no such file or dataset, or its commit cannot be found out offline.
    """
    if isinstance(corpus, UnconditionalPrompts):
        return "unconditional"
    if isinstance(corpus, BuiltinText):
        return f"builtin-{builtin.VERSION}-{corpus.num_texts}-{corpus.text_seed}"
    if isinstance(corpus, FileText):
        return f"sha256-{file_sha256(_local(corpus))}"
    return dataset_identity(corpus)


# --- choosing rows -------------------------------------------------------------------------------


def _select(
    corpus: FileText | DatasetText,
    records: Iterable[tuple[int, Record]],
    source: str,
    *,
    messages: bool,
) -> list[Row]:
    """The kept records as rows, each checked for the columns that the corpus names."""
    rows: list[Row] = []
    for number, record in records:
        for column in (corpus.column, *corpus.where):
            if column not in record:
                raise DataError(
                    f"{source}, row {number}: there is no column {column!r}; "
                    f"the columns are {', '.join(map(str, record)) or 'none'}"
                )
        if not all(_is(record[column], wanted) for column, wanted in corpus.where.items()):
            continue
        text = record[corpus.column]
        if messages and (talk := as_messages(text)) is not None:
            text = json.dumps(talk)
        if not is_text(text):
            raise DataError(
                f"{source}, row {number}: column {corpus.column!r} is {short(text)}, not a text"
            )
        row = f"{source}, row {number}"
        rows.append(
            Row(str(text), _label(record.get(corpus.label_column), corpus.label_column, row))
        )
    return rows


def is_text(value: object) -> bool:
    """A string that has a UTF-8 form; JSON can spell halves of characters, which have none."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _is(value: object, wanted: str | int | float | bool) -> bool:
    """Equality; a CSV cell, always a string, also equals the number or truth value it spells."""
    if isinstance(value, str) and isinstance(wanted, bool):
        return value.strip().lower() == str(wanted).lower()
    if isinstance(value, str) and isinstance(wanted, int | float):
        try:
            return float(value) == wanted
        except ValueError:
            return False
    return value == wanted


def _label(value: object, column: str, row: str) -> str | int | None:
    """A label as an int where it is a whole number (1, 1.0, True, "1"), else as a string."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\d{1,9}", value) else value
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise DataError(f"{row}: label column {column!r} is {short(value)}, not a name or an index")


def short(value: object) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- files ---------------------------------------------------------------------------------------


def _local(corpus: FileText) -> Path:
    path = local_path(corpus.path)
    if not os.path.isfile(path):
        raise DataError(f"path={corpus.path}: no such file (looked in {Path.cwd()})")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{path}: the format {path.suffix or '(no suffix)'} is not known; "
            f"known are {', '.join(SUFFIXES)}"
        )
    return path


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x}); "
            "convert it to UTF-8"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _lines(path: Path) -> Iterator[str]:
    """The file line by line, so that a large one is never in memory as a whole."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except (UnicodeDecodeError, OSError):
        _text(path)  # knows which byte of the file it is
        raise


def _text_lines(corpus: FileText, path: Path) -> list[Row]:
    if corpus.where:
        raise DataError(f"{path}: where={dict(corpus.where)} needs columns, a .txt file has none")
    return [Row(line, None) for line in _text(path).split("\n") if line.strip()]


def _jsonl_records(path: Path) -> Iterator[tuple[int, Record]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, row {number}: not valid JSON: {error}") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}, row {number}: {short(record)} is not a JSON object")
        yield number, record


def _csv_records(path: Path) -> Iterable[tuple[int, Record]]:
    reader = csv.DictReader(_lines(path), strict=True)
    previous_limit = csv.field_size_limit(CSV_FIELD_LIMIT)
    try:
        records = list(enumerate(reader, start=1))
    except csv.Error as error:
        raise DataError(f"{path}, after line {reader.line_num}: not valid CSV: {error}") from None
    finally:
        csv.field_size_limit(previous_limit)
    for number, record in records:
        if None in record or None in record.values():
            raise DataError(f"{path}, row {number}: not as many fields as the header has")
    return records


def _parquet_records(
    path: Path, required: AbstractSet[str], wanted: AbstractSet[str]
) -> Iterator[tuple[int, Record]]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        there = parquet.read_schema(path).names
        columns = [n for n in there if n in wanted] if required <= set(there) else there
        table = parquet.read_table(path, columns=columns, partitioning=None)  # pyright: ignore[reportArgumentType]
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable parquet file: {first_line(error)}") from None
    number = 0
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError):
            rows = _rows_one_by_one(path, batch, number)
        yield from enumerate(rows, start=number + 1)
        number += batch.num_rows


def _rows_one_by_one(path: Path, batch: "pyarrow.RecordBatch", before: int) -> Iterator[Record]:
    """The rows of a batch with one that Python has no value for: not UTF-8, or the year 300000."""
    for index in range(batch.num_rows):
        try:
            yield batch.slice(index, 1).to_pylist()[0]
        except (ValueError, OverflowError) as error:
            raise DataError(f"{path}, row {before + index + 1}: cannot be read: {error}") from None
