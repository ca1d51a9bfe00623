"""What `--storage` says -> a file system and a root on it that nothing of a store leads out of."""

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
    """Whether a store's local folder, once seen, is still there; always so on an object store.

    Making it anew would leave half a store, without its sweeps, where the whole one was.
    """

    def __init__(self, root: str | None) -> None:
        self._root, self._was_there = root, False

    def check(self) -> None:
        """To be called before something is written. Raises LostStoreError."""
        if self._root is None:
            return
        if Path(self._root).is_dir():
            self._was_there = True
        elif self._was_there:
            raise LostStoreError(
                f"{self._root} was removed, or its disk is away, while it was in use; nothing more "
                "is written there"
            )


def _require_folder(root: Path) -> None:
    """Raises UsageError where a file is in the way, or a folder of the store is a link."""
    found = next(path for path in (root, *root.parents) if path.exists())
    if not found.is_dir():
        raise UsageError(f"{found} is a file; name a folder")
    linked = next((root / name for name in FOLDERS if (root / name).is_symlink()), None)
    if linked is not None:
        raise UsageError(
            f"{linked} is a link, and a store may not write or delete where a link leads; "
            "move the folder to its place, or link the store as a whole"
        )


def absolute(storage: str) -> str:
    """A storage that means the same in every process: local paths made absolute."""
    refuse_credentials(storage)
    return storage if "://" in storage else str(expand(storage).resolve())


def inside(root: str, path: str) -> str:
    """The full path of something in a store. Raises UsageError if it would be outside."""
    if path.startswith("/") or ".." in path.split("/"):
        raise UsageError(
            f"{path!r} is not a path inside the store; names of sweeps and trials have no '/' and "
            "are not '..'"
        )
    return f"{root}/{path}" if path else root


def _open_uri(uri: str) -> tuple[fs.FileSystem, str]:
    """What pyarrow knows is its own; of the rest, what fsspec has a package for."""
    try:
        system, root = fs.FileSystem.from_uri(uri)
        if not root:
            raise UsageError("it names no bucket; give one, as in s3://bucket/prefix")
        return system, root
    except pa.ArrowInvalid as error:
        if "Unrecognized filesystem" not in str(error):
            raise
    from fsspec.core import url_to_fs

    system, path = url_to_fs(uri)
    return fs.PyFileSystem(fs.FSSpecHandler(system)), path.rstrip("/")
