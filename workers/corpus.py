"""Reads a corpus: rows of text and label, or complete records.

The source is the built-in reviews, a local file (files.py) or a Hugging Face dataset (dataset.py).
Texts are not cut, shuffled or tokenized here (prompts.py and sft.py do that).
"""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.spec import (
    BuiltinText,
    DatasetText,
    FileText,
    Prompts,
    UnconditionalPrompts,
)
from prefsweep.sweeps.validation_messages import listed
from prefsweep.workers import builtin
from prefsweep.workers.dataset import dataset_identity, dataset_records
from prefsweep.workers.files import (
    Choose,
    Record,
    file_kind,
    file_records,
    require_known,
    short,
    text_lines,
)
from prefsweep.workers.folders import require_own_file
from prefsweep.workers.formats import (
    UnreadableError,
    cell,
    conversation,
    has,
    is_text,
    root,
    written_conversation,
)
from prefsweep.workers.locations import PACKAGE, file_sha256, local_path

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """A text, and its label if the source has one."""

    text: str
    label: str | int | None


def load_texts(
    corpus: BuiltinText | FileText | DatasetText, *, messages: bool = False
) -> list[Row]:
    """All rows of the corpus that match its `where`, in order.

    With `messages`, a list of chat messages is also a text, in JSON.

    Raises DataError with the file, row and column of a value that cannot be used.
    """
    if isinstance(corpus, BuiltinText):
        return [
            Row(review.text, review.label)
            for review in builtin.reviews(corpus.num_texts, corpus.text_seed)
        ]
    if isinstance(corpus, FileText) and file_kind(source := _local(corpus)) == ".txt":
        rows = _text_rows(corpus, source)
    else:
        required, there = (corpus.column, *corpus.where), dict[str, None]()

        def choose(columns: Sequence[str]) -> list[str]:
            there.update(dict.fromkeys(columns))
            return chosen(columns, required, [corpus.label_column])

        source, records = load_records(corpus, choose)
        rows = _select(corpus, _noting(records, there), source, messages=messages)
        read = {root(name, tuple(there)) for name in (*required, corpus.label_column)}
        if messages and (unread := [name for name in there if name not in read]):
            log.warning("%s: columns that are not read: %s", source, listed(unread))
    if not rows:
        matching = f" where {dict(corpus.where)}" if corpus.where else ""
        raise DataError(f"{source}: there are no texts{matching}; the corpus needs at least one")
    return rows


def load_records(
    corpus: FileText | DatasetText, choose: Choose
) -> tuple[str, Iterable[tuple[int, Record]]]:
    """The name of the source for messages, and its records, each with its row number.

    Sources that can read single columns read only those that `choose` returns. Raises DataError,
    partly while the records are iterated.
    """
    if isinstance(corpus, DatasetText):
        return f"dataset {corpus.dataset}", dataset_records(corpus, choose)
    path = _local(corpus)
    return str(path), file_records(path, choose)


def chosen(columns: Sequence[str], required: Iterable[str], optional: Iterable[str]) -> list[str]:
    """The columns to read from a source's columns: all if a required one is missing, so that a
    message can list them. A name with dots is a field inside a column."""
    needed = {root(name, columns) for name in required}
    wanted = needed | {root(name, columns) for name in optional}
    return [name for name in columns if name in wanted or not needed <= set(columns)]


def source_identity(corpus: Prompts | BuiltinText | FileText | DatasetText) -> str:
    """The identity of the corpus's content in fingerprints, without columns and `where`.

    Built in: version, count and seed. File or local folder: SHA-256. Hub: the commit. Raises
    DataError if the file or dataset does not exist, or its commit cannot be determined offline.
    """
    if isinstance(corpus, UnconditionalPrompts):
        return "unconditional"
    if isinstance(corpus, BuiltinText):
        return f"builtin-{builtin.VERSION}-{corpus.num_texts}-{corpus.text_seed}"
    if isinstance(corpus, FileText):
        return f"sha256-{file_sha256(_local(corpus))}"
    return dataset_identity(corpus)


def _noting(
    records: Iterable[tuple[int, Record]], there: dict[str, None]
) -> Iterator[tuple[int, Record]]:
    """Yield the records, and add their columns to `there`."""
    for number, record in records:
        if not record.keys() <= there.keys():
            there.update(dict.fromkeys(record))
        yield number, record


# --- choosing rows -------------------------------------------------------------------------------


def _select(
    corpus: FileText | DatasetText,
    records: Iterable[tuple[int, Record]],
    source: str,
    *,
    messages: bool,
) -> list[Row]:
    """The matching records as rows; raises if a record lacks a column that the corpus names."""
    rows: list[Row] = []
    for number, record in records:
        for column in (corpus.column, *corpus.where):
            if not has(record, column):
                raise DataError(
                    f"{source}, row {number}: there is no column {column!r}; "
                    f"the columns are {listed(record)}"
                )
        if not all(_is(cell(record, column), wanted) for column, wanted in corpus.where.items()):
            continue
        row, text = f"{source}, row {number}", cell(record, corpus.column)
        if messages:
            text = _written(text, f"{row}: column {corpus.column!r}")
        if not is_text(text):
            raise DataError(f"{row}: column {corpus.column!r} is {short(text)}, not a text")
        rows.append(
            Row(str(text), _label(cell(record, corpus.label_column), corpus.label_column, row))
        )
    return rows


def _written(value: object, place: str) -> object:
    """Chat messages as JSON text; other values unchanged."""
    try:
        if isinstance(value, str):
            return written_conversation(value)
        talk = conversation(value)
    except UnreadableError as error:
        raise DataError(f"{place} {error}") from None
    return value if talk is None else json.dumps(talk)


def _is(value: object, wanted: str | int | float | bool) -> bool:
    """Whether a cell equals a value. Text, as in CSV cells, is parsed as a number or boolean."""
    if isinstance(value, str) and isinstance(wanted, bool):
        return value.strip().lower() == str(wanted).lower()
    if isinstance(value, str) and isinstance(wanted, int | float):
        try:
            return float(value) == wanted
        except ValueError:
            return False
    return value == wanted


def _label(value: object, column: str, row: str) -> str | int | None:
    """A label as an int if it is an integer (1, 1.0, True, "1"), else as a string."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\d{1,9}", value) else value
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise DataError(f"{row}: label column {column!r} is {short(value)}, not a name or an index")


# --- files ---------------------------------------------------------------------------------------


def _local(corpus: FileText) -> Path:
    path = local_path(corpus.path)
    if os.path.isdir(path):
        raise DataError(f"path={corpus.path}: is a folder; use dataset={corpus.path}")
    if not os.path.isfile(path):
        raise DataError(f"path={corpus.path}: no such file (looked in {Path.cwd()})")
    if not corpus.path.startswith(PACKAGE):
        require_own_file(path)
    require_known(path)
    return path


def _text_rows(corpus: FileText, path: Path) -> list[Row]:
    if corpus.where:
        raise DataError(f"{path}: where={dict(corpus.where)} needs columns, a .txt file has none")
    return [Row(line, None) for line in text_lines(path)]
