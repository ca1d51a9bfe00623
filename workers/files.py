"""Reads the records of a local data file: JSON, JSON Lines, CSV, TSV, parquet, Arrow or text.

Text files may be compressed (gzip, bzip2, xz, zstd), detected from the first bytes. Row numbers
start at 1, like lines in an editor. This module does not interpret columns.
"""

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from prefsweep.sweeps.errors import DataError

if TYPE_CHECKING:
    import pyarrow

Record = Mapping[str, object]
Choose = Callable[[Sequence[str]], list[str]]
"""Names of all columns of a table -> those to read."""
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
PACKED = (".gz", ".bz2", ".xz", ".zst")
CSV_FIELD_LIMIT = 2**24
"""Maximum characters of a CSV field; Python's limit of 128 Ki is too small for some documents."""
BATCH_ROWS = 1000
"""Number of a table's rows that are converted to Python objects at a time."""
ARRAYS_IN = ("data", "rows", "examples")
"""Keys under which a JSON document may have its rows."""
_BROKEN = (UnicodeDecodeError, OSError, EOFError, lzma.LZMAError, zlib.error)


def file_kind(path: Path) -> str:
    """The suffix of the file's format, without the suffix of its compression."""
    packed = path.suffix.lower() in PACKED
    return Path(path.stem if packed else path.name).suffix.lower()


def require_known(path: Path) -> None:
    """Raises DataError for a file whose suffix is not a known format."""
    kind = file_kind(path)
    if kind in SUFFIXES and (path.suffix.lower() not in PACKED or kind not in (".parquet",)):
        return
    remedy = "; save it as CSV or parquet" if kind in (".xlsx", ".xls") else ""
    if kind in (".zip", ".tar", ".tgz", ".7z"):
        remedy = "; decompress it first"
    raise DataError(
        f"{path}: the format {kind or '(no suffix)'} is not supported; supported are "
        f"{', '.join(SUFFIXES)}, and text files compressed as {', '.join(PACKED)}{remedy}"
    )


def file_records(path: Path, choose: Choose, delimiter: str = ",") -> Iterable[tuple[int, Record]]:
    """The records of a file with columns, each with its row number.

    Formats that can read single columns read only those that `choose` returns. Raises DataError
    with file and row, partly while the records are iterated.
    """
    match file_kind(path):
        case ".txt":
            raise DataError(f"{path}: a .txt file has no columns; use JSONL, CSV or parquet")
        case ".csv":
            return _csv_records(path, delimiter)
        case ".tsv":
            return _csv_records(path, "\t")
        case ".parquet":
            return _parquet_records(path, choose)
        case ".arrow":
            return _arrow_records(path, choose)
        case _:
            return _json_records(path)


def text_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    return [line for line in _all_text(path).split("\n") if line.strip()]


def short(value: object) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# --- text ----------------------------------------------------------------------------------------


def _open(path: Path) -> IO[bytes]:
    """The file's decompressed bytes. Raises OSError, or DataError if it is not a data file."""
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.open(path))
    if head.startswith(b"BZh") and path.suffix.lower() == ".bz2":
        return bz2.open(path)
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.open(path)
    if head.startswith(b"(\xb5/\xfd"):
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(str(path), "zstd"))  # pyright: ignore[reportArgumentType]
    if head.startswith(b"PK\x03\x04"):
        raise DataError(f"{path}: is a zip archive or an Excel file; extract it, or save it as CSV")
    if head.startswith(b"version https://git-lfs"):
        raise DataError(f"{path}: is a Git LFS pointer, not the data; run `git lfs pull`")
    return path.open("rb")


def _text(path: Path, newline: str | None = None) -> IO[str]:
    with _open(path) as file:
        head = file.read(4)
    encoding = "utf-8-sig"
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        encoding = "utf-32"
    elif head.startswith((b"\xff\xfe", b"\xfe\xff")):  # as Excel and PowerShell write it
        encoding = "utf-16"
    return io.TextIOWrapper(_open(path), encoding=encoding, newline=newline)


def _lines(path: Path, newline: str | None = None) -> Iterator[str]:
    """Read the file line by line, so that it is never completely in memory.

    A line ends at a line feed or carriage return, not at other Unicode separators. With newline="",
    line ends are not converted.
    """
    try:
        with _text(path, newline) as file:
            yield from file
    except _BROKEN as error:
        raise _unreadable(path, error) from None


def _all_text(path: Path) -> str:
    return "".join(_lines(path))


def _unreadable(path: Path, error: BaseException) -> DataError:
    if not isinstance(error, UnicodeDecodeError):
        reason = getattr(error, "strerror", None) or first_line(error)
        return DataError(f"{path}: cannot be read: {reason}")
    with _open(path) as file:
        content = file.read()
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as exact:  # its position counts from the start of the file
        error = exact
    return DataError(
        f"{path}: not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x}); "
        "convert it to UTF-8"
    )


# --- JSON ----------------------------------------------------------------------------------------


def _json_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Records from one object per line, or one array of objects."""
    lines = ((n, line) for n, line in enumerate(_lines(path), start=1) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    if first[1].lstrip().startswith("[") or first[1].strip() == "{":
        yield from _array_records(path, first[1] + "".join(line for _, line in lines))
        return
    for number, line in itertools.chain([first], lines):
        yield number, _object(path, number, _parsed(f"{path}, row {number}", line))


def _array_records(path: Path, text: str) -> Iterator[tuple[int, Record]]:
    document = _parsed(str(path), text)
    if isinstance(document, dict):
        keys = [key for key in ARRAYS_IN if isinstance(document.get(key), list)]
        if len(keys) != 1:
            raise DataError(
                f"{path}: is one JSON object with {', '.join(map(short, document)) or 'no keys'}; "
                "use an array of objects, or one object per line"
            )
        document = document[keys[0]]
    for number, record in enumerate(document, start=1):
        yield number, _object(path, number, record)


def _parsed(place: str, text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        problem = "" if isinstance(error, _TwiceError) else "not valid JSON: "
        raise DataError(f"{place}: {problem}{error}") from None


def _object(path: Path, number: int, record: object) -> Record:
    if not isinstance(record, dict):
        raise DataError(f"{path}, row {number}: {short(record)} is not a JSON object")
    return record


class _TwiceError(ValueError):
    """A key occurs twice in a JSON object."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise _TwiceError(f"the key {_repeated([key for key, _ in pairs])} occurs twice")
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _repeated(names: Iterable[str]) -> str:
    """The first name that occurs more than once, quoted; "" if there is none."""
    return next((repr(name) for name, count in Counter(names).items() if count > 1), "")


# --- CSV -----------------------------------------------------------------------------------------


def _csv_records(path: Path, delimiter: str) -> Iterable[tuple[int, Record]]:
    """Records of a CSV file; every cell is text. Columns without a name are left out."""
    lines, num_lines = _lines(path, newline=""), 0
    previous_limit = csv.field_size_limit(CSV_FIELD_LIMIT)
    rows: list[list[str]] = []
    try:
        first = next(lines, "")
        if said := re.fullmatch(r"sep=(.)\s*", first):  # a line that Excel writes before the header
            delimiter, first = said[1], next(lines, "")
        elif delimiter == "," and "," not in first:
            delimiter = next((mark for mark in ";\t|" if mark in first), ",")
        reader = csv.reader(_after(first, lines), strict=True, delimiter=delimiter)
        for row in reader:
            num_lines = reader.line_num
            if row:
                rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path}, after line {num_lines}: not valid CSV: {error}") from None
    finally:
        csv.field_size_limit(previous_limit)
    header = rows[0] if rows else []
    if twice := _repeated(name for name in header if name):
        raise DataError(f"{path}: the column {twice} occurs twice; rename or remove one")
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(header):
            raise DataError(f"{path}, row {number}: the number of fields differs from the header")
    return [
        (number, {name: cell for name, cell in zip(header, row, strict=True) if name})
        for number, row in enumerate(rows[1:], start=1)
    ]


def _after(first: str, lines: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from lines


# --- parquet and Arrow ---------------------------------------------------------------------------


def _parquet_records(path: Path, choose: Choose) -> Iterator[tuple[int, Record]]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        names = parquet.read_schema(path).names
        _require_distinct(str(path), names)
        table = parquet.read_table(path, columns=choose(names), partitioning=None)  # pyright: ignore[reportArgumentType]
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable parquet file: {first_line(error)}") from None
    yield from _table_records(str(path), table)


def _arrow_records(path: Path, choose: Choose) -> Iterator[tuple[int, Record]]:
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as file:
            try:
                table = pyarrow.ipc.open_stream(file).read_all()
            except pyarrow.ArrowInvalid:  # not the stream format, which `datasets` writes
                table = pyarrow.ipc.open_file(file).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Arrow file: {first_line(error)}") from None
    _require_distinct(str(path), table.column_names)
    yield from _table_records(str(path), table.select(choose(table.column_names)))


def _require_distinct(source: str, names: Sequence[str]) -> None:
    """Raises DataError for a table with two columns of the same name."""
    if twice := _repeated(names):
        raise DataError(f"{source}: the column {twice} occurs twice; rename or remove one")


def _table_records(source: str, table: "pyarrow.Table") -> Iterator[tuple[int, Record]]:
    """The rows of a table as Python objects; JSON columns of `datasets` are parsed."""
    decode, number = _decoder(table.schema), 0
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError):
            rows = _rows_one_by_one(source, batch, number)
        yield from enumerate(map(decode, rows), start=number + 1)
        number += batch.num_rows


def _decoder(schema: "pyarrow.Schema") -> Any:
    """A function that parses a row's columns of type Json (of `datasets`)."""
    if b'"Json"' not in (schema.metadata or {}).get(b"huggingface", b""):
        return lambda row: row
    import datasets

    features = datasets.Features.from_arrow_schema(schema)
    return features.decode_example


def _rows_one_by_one(source: str, batch: "pyarrow.RecordBatch", before: int) -> Iterator[Record]:
    """The rows of a batch, up to the one that Python cannot represent (not UTF-8, or the year
    300000), for which this raises DataError."""
    for index in range(batch.num_rows):
        try:
            yield batch.slice(index, 1).to_pylist()[0]
        except (ValueError, OverflowError) as error:
            place = f"{source}, row {before + index + 1}"
            raise DataError(f"{place}: cannot be read: {error}") from None
