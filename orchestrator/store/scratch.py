"""Temporary files and folders: private to this user, named after their process, removed afterwards.

What a killed process leaves behind is deleted by the next run, or the next worker of one, on the
same machine. What belongs to another machine is left alone: nobody here can know whether its
process lives.
"""

import atexit
import logging
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from prefsweep.orchestrator.store.paths import is_scratch_name
from prefsweep.orchestrator.store.processes import machine, started
from prefsweep.orchestrator.store.retry import attempt, remedy_for
from prefsweep.sweeps.errors import StoreError

log = logging.getLogger(__name__)


def scratch_home() -> Path:
    """This user's folder on this machine for what has no place in a store."""
    return private_folder("prefsweep-tmp")


def private_folder(name: str, *, keep: bool = False) -> Path:
    """The folder NAME-UID in the system's temporary folder, which only this user can enter.

    Everybody can create that name first. What is not a folder of this user's, or could be written
    by others, is left alone: a new folder takes its place, deleted at exit unless `keep`.
    """
    folder = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    attempt(str(folder), "written", lambda: folder.parent.mkdir(parents=True, exist_ok=True))
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
        if not is_ours or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return _new_folder(folder, keep)
        if stat.S_IMODE(found.st_mode) != 0o700:  # made by an earlier version: others may read it
            folder.chmod(0o700)
    except OSError as error:
        remedy = remedy_for(error) or "See to TMPDIR"
        raise StoreError(f"{folder} cannot be written: {error}. {remedy}") from error
    return folder


@cache
def _new_folder(taken: Path, keep: bool) -> Path:
    """A private folder for this process, because the name it would have is taken."""
    folder = Path(tempfile.mkdtemp(prefix=f"{taken.name}-"))
    log.warning(
        "%s is another user's, a link, or writable by others; using %s instead (delete the first "
        "one if it is yours)",
        taken,
        folder,
    )
    if not keep:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def scratch_name() -> str:
    """A new name, with the machine and the process that it belongs to."""
    pid = os.getpid()
    return f"{machine()}-{pid}-{started(pid)}-{uuid.uuid4().hex[:8]}"


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A folder for something in the making, deleted at the end.

    An error that says that the disk is full leaves it as a StoreError.
    """
    folder = parent / scratch_name()
    try:
        attempt(str(parent), "written", lambda: folder.mkdir(parents=True))
        yield folder
    except Exception as error:
        remedy = remedy_for(error)
        if remedy and not isinstance(error, StoreError):
            raise StoreError(f"{parent} cannot be written: {error}. {remedy}") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_abandoned(name: str) -> bool:
    """Whether the process that a scratch name belongs to has surely ended."""
    owner = _owner(name)
    return owner is not None and started(owner[0]) != owner[1]


def is_in_use(name: str) -> bool:
    """Whether the process that a scratch name belongs to is known to live."""
    owner = _owner(name)
    return owner is not None and started(owner[0]) == owner[1]


def owners(folder: Path) -> set[int]:
    """Process ids of this machine that something in `folder` belongs to."""
    found = [_owner(item.name) for item in folder.iterdir()] if folder.is_dir() else []
    return {owner[0] for owner in found if owner is not None}


def delete_abandoned(folder: Path) -> int:
    """Delete what processes that have ended left in `folder`; returns how many things."""
    if not folder.is_dir():
        return 0
    abandoned = [item for item in folder.iterdir() if is_abandoned(item.name)]
    for item in abandoned:
        if item.is_dir():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)
    return len(abandoned)


def _owner(name: str) -> tuple[int, str] | None:
    """Process id and start of a scratch name's process; None if it is not of this machine."""
    home, _, rest = name.partition("-")
    pid, _, rest = rest.partition("-")
    if not is_scratch_name(name) or home != machine():
        return None
    return int(pid), rest.rpartition("-")[0]
