"""Opens `--storage`: returns its file system and root, and refuses paths outside the root."""

from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from prefsweep.orchestrator.store.credentials import redacted, refuse_credentials
from prefsweep.orchestrator.store.paths import FOLDERS
from prefsweep.sweeps.errors import LostStoreError, UsageError
from prefsweep.workers.locations import expand


def open_storage(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a folder or URI, and the root there. Raises UsageError."""
    refuse_credentials(uri)
    try:
        system, root = _open_uri(uri) if "://" in uri else (fs.LocalFileSystem(), absolute(uri))
        if isinstance(system, fs.LocalFileSystem):
            _require_folder(Path(root))
        return system, root
    except (pa.ArrowException, OSError, ValueError, ImportError, UsageError) as error:
        message = f"--storage {uri} cannot be opened: {error}"
        raise UsageError(redacted(message)) from None


class RootThere:
    """Detects that a store's local folder was removed while it was in use.

    Creating it again would leave an incomplete store, without its sweeps. An object store has no
    such folder and passes every check.
    """

    def __init__(self, root: str | None) -> None:
        self._root, self._was_there = root, False

    def check(self) -> None:
        """Raises LostStoreError if the folder has disappeared. Called before each write."""
        if self._root is None:
            return
        if Path(self._root).is_dir():
            self._was_there = True
        elif self._was_there:
            raise LostStoreError(
                f"{self._root} was removed, or its disk was unmounted, while it was in use; "
                "nothing more is written to it"
            )


def _require_folder(root: Path) -> None:
    """Raises UsageError if the root or a parent is a file, or a folder of the store is a link."""
    found = next(path for path in (root, *root.parents) if path.exists())
    if not found.is_dir():
        raise UsageError(f"{found} is a file; use a folder")
    linked = next((root / name for name in FOLDERS if (root / name).is_symlink()), None)
    if linked is not None:
        raise UsageError(
            f"{linked} is a link, and prefsweep does not write or delete through links inside a "
            "store; move the folder here, or make the store's own folder the link"
        )


def absolute(storage: str) -> str:
    """The storage with a local path made absolute, so that it is the same in every process."""
    refuse_credentials(storage)
    return storage if "://" in storage else str(expand(storage).resolve())


def inside(root: str, path: str) -> str:
    """The full path of a path in a store. Raises UsageError if it is outside the store."""
    if path.startswith("/") or ".." in path.split("/"):
        raise UsageError(
            f"{path!r} is not a path inside the store; names of sweeps and trials cannot contain "
            "'/' or be '..'"
        )
    return f"{root}/{path}" if path else root


def _open_uri(uri: str) -> tuple[fs.FileSystem, str]:
    """Open a URI with pyarrow, or with fsspec if pyarrow does not support its scheme."""
    try:
        system, root = fs.FileSystem.from_uri(uri)
        if not root:
            raise UsageError("it has no bucket; add one, as in s3://bucket/prefix")
        return system, root
    except pa.ArrowInvalid as error:
        if "Unrecognized filesystem" not in str(error):
            raise
    from fsspec.core import url_to_fs

    system, path = url_to_fs(uri)
    return fs.PyFileSystem(fs.FSSpecHandler(system)), path.rstrip("/")
