"""What of a folder or file that a spec names is read, hashed and copied: what it itself holds.

Data and models may come from others. A link that leads out of their folder would have any file of
this user's hashed, put into a store and sent with a job, so such links are refused, as is whatever
is no regular file. Names that begin with a dot (.git, .env) are no data and are left out. A folder
that the spec names may itself be a link: its target is what the user chose.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prefsweep.sweeps.errors import DataError


@dataclass(frozen=True)
class Contents:
    """What a path holds."""

    files: list[Path]
    """Regular files at any depth, in order."""
    skipped: list[str]
    """Names, relative to the folder, that were left out because they begin with a dot."""

    def __str__(self) -> str:
        size = sum(file.stat().st_size for file in self.files) / 1e6
        num = "1 file" if len(self.files) == 1 else f"{len(self.files)} files"
        shown = ", ".join(self.skipped[:5]) + (", ..." if len(self.skipped) > 5 else "")
        return f"{num}, {size:.1f} MB" + (f" (left out: {shown})" if shown else "")


def contents(path: Path) -> Contents:
    """The files of a folder, or a file itself. Raises DataError for what leads elsewhere."""
    if not os.path.isdir(path):
        require_own_file(path)
        return Contents([path], [])
    found = Contents([], [])
    _collect(path, path, _roots(path), found)
    found.files.sort()
    return found


def require_own_file(path: Path) -> None:
    """Raises DataError if a named file is a link to another folder, or no regular file."""
    if path.is_symlink():
        _require_inside(path, _roots(path.parent), "name that file itself")
    _require_regular(path)


def _collect(folder: Path, top: Path, roots: list[Path], found: Contents) -> None:
    for item in _entries(folder):
        if item.name.startswith("."):
            found.skipped.append(item.relative_to(top).as_posix())
        elif item.is_symlink():
            if os.path.isdir(item):
                raise DataError(f"{item} is a link to a folder; put the folder itself there")
            remedy = "put the file itself there, or delete the link"
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
    """Where links of a folder may lead: inside it, or to the files of a Hugging Face cache, whose
    `snapshots/COMMIT` are links to the `blobs` beside."""
    real = folder.resolve()
    if real.parent.name == "snapshots":
        blobs = real.parent.parent / "blobs"
        if blobs.is_dir() and not blobs.is_symlink():
            return [real, blobs]
    return [real]


def _require_inside(link: Path, roots: list[Path], remedy: str) -> None:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # broken, or a circle
        raise DataError(f"{link} is a link that leads nowhere; delete it") from None
    if not any(target.is_relative_to(root) for root in roots):
        raise DataError(f"{link} is a link to {target}, outside its folder; {remedy}")


def _require_regular(path: Path) -> None:
    """Raises DataError for pipes, sockets and devices, and for what the kernel makes up."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    is_made_up = any(path.resolve().is_relative_to(place) for place in ("/proc", "/sys", "/dev"))
    if is_made_up or not stat.S_ISREG(mode):
        raise DataError(f"{path} is no regular file (a pipe, socket, device or part of /proc)")
