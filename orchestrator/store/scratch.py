"""Temporary files and folders: private to this user, named after their process, deleted after use.

The next run or worker on the same machine deletes what a killed process has left behind. Files of
other machines are not deleted, because this machine cannot tell whether their process is alive.
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
from prefsweep.orchestrator.store.processes import machine, start_time
from prefsweep.orchestrator.store.retry import attempt, remedy_for
from prefsweep.sweeps.errors import StoreError

log = logging.getLogger(__name__)


def scratch_home() -> Path:
    """This user's folder on this machine for temporary files that cannot be in a store."""
    return private_folder("prefsweep-tmp")


def private_folder(name: str, *, keep: bool = False) -> Path:
    """The folder NAME-UID in the system's temporary folder, which only this user can enter.

    Another user may have created that name first. If it is not this user's folder, or others can
    write to it, a new folder is used instead, deleted at exit unless `keep`.
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
        remedy = remedy_for(error) or "Check TMPDIR"
        raise StoreError(f"{folder} cannot be written: {error}. {remedy}") from error
    return folder


@cache
def _new_folder(taken: Path, keep: bool) -> Path:
    """A private folder for this process, because the usual name is taken."""
    folder = Path(tempfile.mkdtemp(prefix=f"{taken.name}-"))
    log.warning(
        "%s belongs to another user, is a link, or is writable by others; using %s instead (delete "
        "the first one if it is yours)",
        taken,
        folder,
    )
    if not keep:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def scratch_name() -> str:
    """A new name that contains this machine and process."""
    pid = os.getpid()
    return f"{machine()}-{pid}-{start_time(pid)}-{uuid.uuid4().hex[:8]}"


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A temporary folder, deleted at the end.

    An error that reports a full disk is raised as a StoreError.
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
    """Whether the process of a scratch name is known to have ended."""
    owner = _owner(name)
    return owner is not None and start_time(owner[0]) != owner[1]


def is_in_use(name: str) -> bool:
    """Whether the process of a scratch name is known to be alive."""
    owner = _owner(name)
    return owner is not None and start_time(owner[0]) == owner[1]


def owners(folder: Path) -> set[int]:
    """IDs of the processes of this machine that own something in `folder`."""
    found = [_owner(item.name) for item in folder.iterdir()] if folder.is_dir() else []
    return {owner[0] for owner in found if owner is not None}


def delete_abandoned(folder: Path) -> int:
    """Delete what ended processes left in `folder`; returns the number of files and folders."""
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
    """Process ID and start time in a scratch name; None if it is of another machine."""
    home, _, rest = name.partition("-")
    pid, _, rest = rest.partition("-")
    if not is_scratch_name(name) or home != machine():
        return None
    return int(pid), rest.rpartition("-")[0]
