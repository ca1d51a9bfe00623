"""A Hugging Face dataset, on the hub or in a local folder, in; its rows and identity out.

Knows nothing of columns' meaning; `corpus.py` chooses texts and labels.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.spec import DatasetText
from prefsweep.workers.locations import expand, file_sha256

Record = Mapping[str, object]
BATCH_ROWS = 1000
"""Rows of a table that are Python objects at a time."""


def dataset_identity(corpus: DatasetText) -> str:
    """SHA-256 of a local folder, or hub id and commit. Raises DataError."""
    folder = expand(corpus.dataset)
    if os.path.exists(folder):  # Path.exists raises for a name that is too long
        return f"sha256-{_folder_sha256(folder)}"
    return f"{corpus.dataset}@{_hub_commit(corpus)}"


def dataset_records(
    corpus: DatasetText, required: AbstractSet[str], wanted: AbstractSet[str]
) -> Iterator[tuple[int, Record]]:
    """The dataset's rows, class indices left as ints; only the columns that are read."""
    import datasets
    import pyarrow
    from datasets.exceptions import DatasetsError

    folder, said = expand(corpus.dataset), list[str]()
    place = str(folder) if os.path.exists(folder) else corpus.dataset
    try:
        with _silenced(said):
            dataset = datasets.load_dataset(
                place, corpus.config, split=corpus.split, revision=corpus.revision
            )
    except StopIteration:
        raise DataError(f"dataset={corpus.dataset}: one of its files is empty") from None
    except (
        OSError,
        ValueError,
        DatasetsError,
        pyarrow.ArrowException,
    ) as error:
        # What the library logs names the file; what it raises does not.
        reason = said[-1] if said else first_line(error.__cause__ or error)
        raise DataError(_why_not_found(corpus, reason)) from None
    assert isinstance(dataset, datasets.Dataset), "a named split is one dataset"
    if required <= set(dataset.column_names):  # else the check names them all
        dataset = dataset.select_columns([c for c in dataset.column_names if c in wanted])
    for start in range(0, len(dataset), BATCH_ROWS):
        end = min(start + BATCH_ROWS, len(dataset))
        yield from enumerate(_rows(corpus, dataset, start, end), start=start + 1)


def _rows(corpus: DatasetText, dataset: Any, start: int, end: int) -> Iterator[Record]:
    """Rows `start` to `end`; one by one where a batch holds what Python has no value for."""
    try:
        columns = dataset[start:end]
    except (ValueError, OverflowError) as error:
        if end - start == 1:
            place = f"dataset {corpus.dataset}, row {start + 1}"
            raise DataError(f"{place}: cannot be read: {error}") from None
        for index in range(start, end):
            yield from _rows(corpus, dataset, index, index + 1)
    else:
        yield from (
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        )


def _why_not_found(corpus: DatasetText, reason: str) -> str:
    message = f"dataset={corpus.dataset}, split={corpus.split}: {reason}"
    if os.path.exists(expand(corpus.dataset)):
        return message
    if _is_offline():
        return (
            f"{message} (the hub is switched off by HF_HUB_OFFLINE). Unset HF_HUB_OFFLINE, or "
            "download the dataset and give its local folder"
        )
    return f"{message}. Check the id, config and split (and HF_TOKEN, if it is gated)"


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")


@contextmanager
def _silenced(said: list[str]) -> Iterator[None]:
    """No progress bars, and the errors that the library would print added to `said`."""
    import datasets

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.extend(record.getMessage().splitlines()[:1])

    logger, were_off = logging.getLogger("datasets"), datasets.are_progress_bars_disabled()
    handlers = logger.handlers
    logger.handlers = [Listener(logging.ERROR)]
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.handlers = handlers
        if not were_off:
            datasets.enable_progress_bars()


def _hub_commit(corpus: DatasetText) -> str:
    """The commit that the revision stands for: as the hub says, else as the local cache has it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  httpx's or httpx2's, by version
        OfflineModeIsEnabled,
    )

    revision = corpus.revision or "main"
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    try:
        commit = HfApi().dataset_info(corpus.dataset, revision=revision, timeout=20).sha
    except HFValidationError as error:
        raise DataError(_why_not_found(corpus, first_line(error))) from None
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        commit = _cached_commit(corpus.dataset, revision)
        if commit is None:
            raise DataError(_why_not_found(corpus, first_line(error))) from None
    assert commit is not None, "the hub answers with a commit"
    return commit


def _cached_commit(dataset: str, revision: str) -> str | None:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=dataset, repo_type="dataset")
    reference = Path(constants.HF_HUB_CACHE) / folder / "refs" / revision
    return reference.read_text().strip() if os.path.isfile(reference) else None


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _folder_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}:{file_sha256(path)}\n".encode())
    return digest.hexdigest()
