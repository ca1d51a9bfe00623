"""Lists the files of a folder or file in a spec that are read, hashed and copied.

Data and models may come from other people. A link out of their folder could make prefsweep hash
any file of this user, copy it into a store and send it with a job. Such links are refused, and so
are files that are not regular. Names that begin with a dot (.git, .env) are left out. A folder in
the spec may itself be a link, because the user has chosen its target.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prefsweep.sweeps.errors import DataError


@dataclass(frozen=True)
class Contents:
    """The content of a path."""

    files: list[Path]
    """Regular files at any depth, sorted."""
    skipped: list[str]
    """Names, relative to the folder, that were left out because they begin with a dot."""

    def __str__(self) -> str:
        size = sum(file.stat().st_size for file in self.files) / 1e6
        num = "1 file" if len(self.files) == 1 else f"{len(self.files)} files"
        shown = ", ".join(self.skipped[:5]) + (", ..." if len(self.skipped) > 5 else "")
        return f"{num}, {size:.1f} MB" + (f" (left out: {shown})" if shown else "")


def contents(path: Path) -> Contents:
    """The files of a folder, or a file itself. Raises DataError for links to outside it."""
    if not os.path.isdir(path):
        require_own_file(path)
        return Contents([path], [])
    found = Contents([], [])
    _collect(path, path, _roots(path), found)
    found.files.sort()
    return found


def require_own_file(path: Path) -> None:
    """Raises DataError if a file is a link to another folder, or is not a regular file."""
    if path.is_symlink():
        _require_inside(path, _roots(path.parent), "use that file's path")
    _require_regular(path)


def _collect(folder: Path, top: Path, roots: list[Path], found: Contents) -> None:
    for item in _entries(folder):
        if item.name.startswith("."):
            found.skipped.append(item.relative_to(top).as_posix())
        elif item.is_symlink():
            if os.path.isdir(item):
                raise DataError(f"{item} is a link to a folder; replace it by the folder")
            remedy = "replace it by the file, or delete the link"
            _require_inside(item, roots, remedy)
            _require_regular(item)
            found.files.append(item)
        elif os.path.isdir(item):
            _collect(item, top, roots, found)
        else:
            _require_regular(item)
            found.files.append(item)


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from None


def _roots(folder: Path) -> list[Path]:
    """Folders that links in a folder may point into: the folder itself, and in a Hugging Face cache
    the `blobs` folder, to which the files in `snapshots/COMMIT` are links."""
    real = folder.resolve()
    if real.parent.name == "snapshots":
        blobs = real.parent.parent / "blobs"
        if blobs.is_dir() and not blobs.is_symlink():
            return [real, blobs]
    return [real]


def _require_inside(link: Path, roots: list[Path], remedy: str) -> None:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # broken, or a cycle
        raise DataError(f"{link} is a broken link; delete it") from None
    if not any(target.is_relative_to(root) for root in roots):
        raise DataError(f"{link} is a link to {target}, outside its folder; {remedy}")


def _require_regular(path: Path) -> None:
    """Raises DataError for pipes, sockets and devices, and for files that the kernel generates."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    is_made_up = any(path.resolve().is_relative_to(place) for place in ("/proc", "/sys", "/dev"))
    if is_made_up or not stat.S_ISREG(mode):
        raise DataError(f"{path} is not a regular file (a pipe, socket, device or part of /proc)")
