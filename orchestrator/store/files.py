"""Single steps on a file system: each is whole or did not happen. No retries, no store layout."""

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
"""Most that is read of a record or a metrics log, many times what any sweep writes."""


class OddFileError(StoreError):
    """What stands in the place of a file is none (a named pipe, a device), or is far too large."""


def read_file(system: fs.FileSystem, path: str, most_bytes: int | None) -> bytes | None:
    """The file's content, or None if there is no such file.

    Raises OddFileError for what is no regular file or has more than `most_bytes`, unread.
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
        raise OddFileError(f"{path} is larger than {most_bytes} bytes, the most that is read of it")
    return data


def open_to_append(path: str, flags: int) -> int:
    """An opener (see `open`) that neither follows a link nor waits at a named pipe."""
    return _open_regular(path, flags | os.O_NOFOLLOW)


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OddFileError(f"{path} is not a regular file")


def stamps(system: fs.FileSystem, paths: list[str]) -> list[tuple[int, int]]:
    """Size and time of change, ns, of every file, (0, 0) for none: another one, another content."""
    infos = system.get_file_info(paths)
    return [(info.size or 0, info.mtime_ns or 0) for info in infos]


def delete(system: fs.FileSystem, root: str, path: str) -> None:
    """Delete a folder or file below `root` if it is there.

    Of a link the link itself goes, and never what it leads to. Raises StoreError where a folder on
    the way to `path` is a link.
    """
    if isinstance(system, fs.LocalFileSystem):
        _delete_local(Path(root), Path(path))
        return
    info = system.get_file_info(path)
    with suppress(FileNotFoundError):  # another process was first
        if info.type == fs.FileType.Directory:
            system.delete_dir(path)
        elif info.type == fs.FileType.File:
            system.delete_file(path)


def _delete_local(root: Path, path: Path) -> None:
    for parent in path.parents:
        if parent == root:
            break
        if parent.is_symlink():
            raise StoreError(f"{path} was not deleted: {parent} is a link and leads elsewhere")
    while path.is_dir() and not path.is_symlink():
        with suppress(FileNotFoundError):  # another process deletes it, too
            shutil.rmtree(path)
    path.unlink(missing_ok=True)


def num_bytes(system: fs.FileSystem, path: str) -> int:
    """Bytes of a file, or of all files below a folder; 0 where there is nothing.

    In a local folder links count by themselves: they may lead anywhere.
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
    except (FileNotFoundError, NotADirectoryError):  # deleted meanwhile
        return 0


def replace_file(target: Path, scratch: Path, fill: Callable[[str], None]) -> None:
    """Have `fill` write a local file `scratch`, then give it its name: nobody sees half of it."""
    try:
        scratch.parent.mkdir(parents=True, exist_ok=True)
        fill(str(scratch))
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.rename(target)
    finally:
        scratch.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Move a local file or folder if it is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):  # another process was first
        source.rename(target)


def complete(folder: Path, name: str, data: bytes) -> None:
    """Write a folder's last file, and give all others its mode, which is what the umask allows.

    Some libraries write files that only their owner may read (safetensors), into shared stores too.
    """
    last = folder / name
    last.write_bytes(data)
    mode = stat.S_IMODE(last.stat().st_mode)
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a local file, or nothing if there is no room for all of it."""
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
    """Alone among the processes that lock the same local file.

    On a network file system without locks it is advice: then nobody waits.
    """
    import fcntl

    attempt(str(path), "written", lambda: path.parent.mkdir(parents=True, exist_ok=True))
    look = partial(open, path, "ab", opener=open_to_append)
    with attempt(str(path), "written", look) as file:
        # the kernel unlocks it when the process ends
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
