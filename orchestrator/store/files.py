"""Single atomic steps on a file system. This module neither retries nor knows the store layout."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from pyarrow import fs

from prefsweep.orchestrator.store.retry import attempt
from prefsweep.sweeps.errors import StoreError

MAX_RECORD_BYTES = 256 * 2**20
"""Size limit for reading a record or a metrics log, many times what any sweep writes."""


class OddFileError(StoreError):
    """The path is not a regular file (a named pipe, a device), or the file is too large."""


def read_file(system: fs.FileSystem, path: str, most_bytes: int | None) -> bytes | None:
    """The file's content, or None if there is no such file.

    Raises OddFileError, without reading, if it is not a regular file or exceeds `most_bytes`.
    """
    try:
        if isinstance(system, fs.LocalFileSystem):
            with open(path, "rb", opener=_open_regular) as file:
                size = os.fstat(file.fileno()).st_size
                data = b"" if most_bytes is not None and size > most_bytes else file.read()
        else:
            with system.open_input_stream(path) as stream:
                data = stream.read(None if most_bytes is None else most_bytes + 1)
                size = len(data)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if most_bytes is not None and size > most_bytes:
        raise OddFileError(f"{path} is larger than {most_bytes} bytes, the limit for this file")
    return data


def open_to_append(path: str, flags: int) -> int:
    """An opener (see `open`) that refuses links and does not block on a named pipe."""
    return _open_regular(path, flags | os.O_NOFOLLOW)


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OddFileError(f"{path} is not a regular file")


def file_versions(system: fs.FileSystem, paths: list[str]) -> list[tuple[int, int]]:
    """Size in bytes and modification time in ns of each file, (0, 0) for a missing one.

    They change when the content changes.
    """
    infos = system.get_file_info(paths)
    return [(info.size or 0, info.mtime_ns or 0) for info in infos]


def delete(system: fs.FileSystem, root: str, path: str) -> None:
    """Delete a folder or file below `root` if it exists.

    A link is deleted itself, never its target. Raises StoreError if a parent folder of `path` is a
    link.
    """
    if isinstance(system, fs.LocalFileSystem):
        _delete_local(Path(root), Path(path))
        return
    info = system.get_file_info(path)
    with suppress(FileNotFoundError):  # another process has deleted it
        if info.type == fs.FileType.Directory:
            system.delete_dir(path)
        elif info.type == fs.FileType.File:
            system.delete_file(path)


def _delete_local(root: Path, path: Path) -> None:
    for parent in path.parents:
        if parent == root:
            break
        if parent.is_symlink():
            raise StoreError(f"{path} was not deleted: {parent} is a link to another folder")
    while path.is_dir() and not path.is_symlink():
        with suppress(FileNotFoundError):  # another process is deleting it as well
            shutil.rmtree(path)
    path.unlink(missing_ok=True)


def num_bytes(system: fs.FileSystem, path: str) -> int:
    """Size in bytes of a file, or of all files below a folder; 0 if the path does not exist.

    In a local folder, a link counts with its own size, not with that of its target.
    """
    if isinstance(system, fs.LocalFileSystem):
        below = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        return sum(map(_own_size, [Path(path)] if not _is_folder(path) else below))
    info = system.get_file_info(path)
    if info.type != fs.FileType.Directory:
        return info.size or 0
    below = system.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
    return sum(item.size or 0 for item in below)


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _own_size(file: Path) -> int:
    try:
        return file.lstat().st_size
    except (FileNotFoundError, NotADirectoryError):  # deleted by another process
        return 0


def replace_file(target: Path, scratch: Path, fill: Callable[[str], None]) -> None:
    """Have `fill` write a local file `scratch`, then rename it, so that `target` is complete."""
    try:
        scratch.parent.mkdir(parents=True, exist_ok=True)
        fill(str(scratch))
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.rename(target)
    finally:
        scratch.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Move a local file or folder if it exists."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):  # another process has moved it
        source.rename(target)


def complete(folder: Path, name: str, data: bytes) -> None:
    """Write a folder's last file and give all other files its mode, which follows the umask.

    safetensors, for example, writes files that only their owner may read, even in shared stores.
    """
    last = folder / name
    last.write_bytes(data)
    mode = stat.S_IMODE(last.stat().st_mode)
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)


def append_line(path: Path, line: bytes) -> None:
    """Append a line to a local file. If the disk has no room for it, the file stays unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0, opener=open_to_append) as file:
        size, rest = os.fstat(file.fileno()).st_size, line
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(size)
            raise


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a local file. Other processes that lock the same file wait.

    On a network file system without locks, no process waits.
    """
    import fcntl

    attempt(str(path), "written", lambda: path.parent.mkdir(parents=True, exist_ok=True))
    look = partial(open, path, "ab", opener=open_to_append)
    with attempt(str(path), "written", look) as file:
        # the kernel releases the lock when the process ends
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
