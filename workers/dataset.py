"""Reads the rows and the identity of a Hugging Face dataset, on the hub or in a local folder.

Files of a local folder are read directly. The cache of `datasets` is not used for them, because it
compares modification times, not content. `corpus.py` selects texts and labels from the columns.
"""

import hashlib
import itertools
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.sources import is_commit
from prefsweep.sweeps.spec import DatasetText
from prefsweep.workers.files import (
    BATCH_ROWS,
    SUFFIXES,
    Choose,
    Record,
    file_kind,
    file_records,
    first_line,
    require_known,
)
from prefsweep.workers.folders import contents
from prefsweep.workers.locations import expand, file_sha256

log = logging.getLogger(__name__)

_SAVED = ("dataset_dict.json", "state.json")
"""Files that `save_to_disk` writes into a folder."""
_READ_HERE = ("csv", "json", "parquet", "arrow")
"""Kinds of files that files.py reads, by the names of the readers of `datasets`."""
_NO_DATA = re.compile(r"(.*/)?([._]|README|dataset_infos?\.json)")
_SET_ALWAYS = ("name", "version", "data_files", "sep", "delimiter")
"""Options of a reader of `datasets` that do not change how it reads, or that are supported here."""


def dataset_identity(corpus: DatasetText) -> str:
    """SHA-256 of a local folder, or hub ID and commit. Raises DataError."""
    folder = expand(corpus.dataset)
    if os.path.exists(folder):  # Path.exists raises for a name that is too long
        return f"sha256-{_folder_sha256(folder)}"
    return f"{corpus.dataset}@{_hub_commit(corpus)}"


def dataset_records(corpus: DatasetText, choose: Choose) -> Iterator[tuple[int, Record]]:
    """The dataset's rows with the columns that `choose` returns; class indices remain ints."""
    import pyarrow
    from datasets.exceptions import DatasetsError

    folder, said = expand(corpus.dataset), list[str]()
    try:
        with _silenced(said):
            if not os.path.exists(folder):
                records = _hub_records(corpus, choose)
            elif any((folder / name).is_file() for name in _SAVED):
                records = _saved_records(corpus, folder, choose)
            else:
                records = _folder_records(corpus, folder, choose)
    except StopIteration:
        raise DataError(f"dataset={corpus.dataset}: one of its files is empty") from None
    except (
        OSError,
        ValueError,
        DatasetsError,
        pyarrow.ArrowException,
    ) as error:
        # The library's log names the file; its exception does not.
        reason = said[-1] if said else first_line(error.__cause__ or error)
        raise DataError(_why_not_found(corpus, reason)) from None
    yield from records


# --- where the rows are --------------------------------------------------------------------------


def _folder_records(
    corpus: DatasetText, folder: Path, choose: Choose
) -> Iterator[tuple[int, Record]]:
    """Rows of a local folder's files; `datasets` assigns them to splits by their names."""
    import datasets
    import datasets.config as settings

    if folder.is_file():
        return _split_records(corpus, {"train": [folder]}, choose, ",")
    builder = datasets.load_dataset_builder(str(folder), corpus.config)
    kind = type(builder).__module__.rpartition(".")[2]
    config: Any = builder.config
    if kind not in _READ_HERE or builder.info.features is not None or not _is_plain(config):
        # It has its own reader, types or options. Each content gets a separate cache.
        cache = Path(settings.HF_DATASETS_CACHE) / _folder_sha256(folder)
        dataset: Any = datasets.load_dataset(
            str(folder), corpus.config, split=corpus.split, cache_dir=str(cache)
        )
        return _dataset_rows(corpus, dataset, choose)
    files = {str(split): list(map(Path, paths)) for split, paths in config.data_files.items()}
    _report_unread(corpus, folder, files)
    return _split_records(corpus, files, choose, getattr(config, "sep", None) or ",")


def _is_plain(config: Any) -> bool:
    """Whether no option of the reader is set (a README in the folder can set options)."""
    return all(
        getattr(config, option.name) == option.default
        for option in fields(config)
        if option.name not in _SET_ALWAYS
    )


def _saved_records(
    corpus: DatasetText, folder: Path, choose: Choose
) -> Iterator[tuple[int, Record]]:
    """Rows of a folder written by `save_to_disk`: one dataset, or one per split."""
    import datasets

    saved = datasets.load_from_disk(str(folder))
    whole = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    parts = _parts(corpus.split, {str(split): len(dataset) for split, dataset in whole.items()})
    tables = [whole[split].select(range(first, last)) for split, first, last in parts]
    return _dataset_rows(corpus, datasets.concatenate_datasets(tables), choose)


def _hub_records(corpus: DatasetText, choose: Choose) -> Iterator[tuple[int, Record]]:
    """Rows of a dataset on the hub, at the commit in its identity."""
    import datasets

    commit, options = _hub_commit(corpus), dict[str, Any]()
    builder = datasets.load_dataset_builder(corpus.dataset, corpus.config, revision=commit)
    found = str(builder.hash)
    if is_commit(found) and found != commit:  # offline, from the cache
        raise DataError(
            f"dataset={corpus.dataset}: the local cache has commit {found}, not {commit}; "
            f"unset HF_HUB_OFFLINE, or set revision={found}"
        )
    is_csv = type(builder).__module__.endswith(".csv")
    if is_csv and builder.info.features is None:  # every cell is text, even "NA" and "7"
        options = {"dtype": str, "keep_default_na": False, "na_filter": False}
    dataset: Any = datasets.load_dataset(
        corpus.dataset, corpus.config, split=corpus.split, revision=commit, **options
    )
    return _dataset_rows(corpus, dataset, choose)


def _split_records(
    corpus: DatasetText, files: dict[str, list[Path]], choose: Choose, delimiter: str
) -> Iterator[tuple[int, Record]]:
    """Rows of the split's files in order, with consecutive row numbers."""
    for path in itertools.chain(*files.values()):
        require_known(path)

    def records(split: str) -> Iterator[Record]:
        for path in files[split]:
            yield from (record for _, record in file_records(path, choose, delimiter))

    if corpus.split in files:
        return enumerate(records(corpus.split), start=1)
    named = {name for name in re.split(r"[\[+\]]", corpus.split) if name in files}
    rows = {split: list(records(split)) if split in named else [] for split in files}
    parts = _parts(corpus.split, {split: len(found) for split, found in rows.items()})
    chosen = itertools.chain(*(rows[split][first:last] for split, first, last in parts))
    return enumerate(chosen, start=1)


def _parts(split: str, lengths: dict[str, int]) -> list[tuple[str, int, int]]:
    """The name, first and last row of each part of a split in the notation of `datasets`.

    Raises ValueError if the notation is invalid.
    """
    import datasets

    parts = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    return [
        (part.splitname, part.from_ or 0, lengths[part.splitname] if part.to is None else part.to)
        for part in parts
    ]


def _report_unread(corpus: DatasetText, folder: Path, files: dict[str, list[Path]]) -> None:
    """Log the data files of the folder that belong to no split."""
    taken = {path.resolve() for path in itertools.chain(*files.values())}
    left = [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and file_kind(path) in SUFFIXES and path.resolve() not in taken
    ]
    left = [name for name in left if not _NO_DATA.match(name)]
    if left:
        log.warning("dataset=%s: not read, in no split: %s", corpus.dataset, ", ".join(left[:10]))


# --- rows of the library's own tables ------------------------------------------------------------


def _dataset_rows(
    corpus: DatasetText, dataset: Any, choose: Choose
) -> Iterator[tuple[int, Record]]:
    dataset = dataset.select_columns(choose(dataset.column_names))
    for start in range(0, len(dataset), BATCH_ROWS):
        end = min(start + BATCH_ROWS, len(dataset))
        yield from enumerate(_rows(corpus, dataset, start, end), start=start + 1)


def _rows(corpus: DatasetText, dataset: Any, start: int, end: int) -> Iterator[Record]:
    """Rows `start` to `end`, one by one if a batch has a value that Python cannot represent."""
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
            f"{message} (HF_HUB_OFFLINE is set). Unset HF_HUB_OFFLINE, or "
            "download the dataset and use its local folder"
        )
    return f"{message}. Check the id, config and split (and HF_TOKEN, if it is gated)"


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")


@contextmanager
def _silenced(said: list[str]) -> Iterator[None]:
    """Disable progress bars, and add the errors that the library would print to `said`."""
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
    """The commit of the revision, from the hub, or else from the local cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  httpx's or httpx2's, by version
        OfflineModeIsEnabled,
    )

    revision = corpus.revision or "main"
    if is_commit(revision):
        return revision
    try:
        commit = HfApi().dataset_info(corpus.dataset, revision=revision, timeout=20).sha
    except HFValidationError as error:
        raise DataError(_why_not_found(corpus, first_line(error))) from None
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        commit = _cached_commit(corpus.dataset, revision)
        if commit is None:
            raise DataError(_why_not_found(corpus, first_line(error))) from None
    if not is_commit(commit):
        raise DataError(f"dataset={corpus.dataset}: its commit {commit!r} is not a commit hash")
    return commit


def _cached_commit(dataset: str, revision: str) -> str | None:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=dataset, repo_type="dataset")
    reference = Path(constants.HF_HUB_CACHE) / folder / "refs" / revision
    return reference.read_text().strip() if os.path.isfile(reference) else None


def _folder_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in contents(folder).files:
        digest.update(f"{path.relative_to(folder).as_posix()}:{file_sha256(path)}\n".encode())
    return digest.hexdigest()
