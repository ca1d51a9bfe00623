"""Names of temporary files and folders that say whose they are, and their removal afterwards.

What a killed process leaves behind is deleted by the next run, or the next worker of one, on the
same machine. What belongs to another machine is left alone: nobody here can know whether its
process lives.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefsweep.orchestrator.recovery.processes import machine, started
from prefsweep.orchestrator.storage.attempts import attempt, remedy_for
from prefsweep.sweeps.errors import StoreError


def scratch_home() -> Path:
    """This user's folder on this machine for what has no place in a store."""
    return Path(tempfile.gettempdir()) / f"prefsweep-tmp-{os.getuid()}"


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
    if home != machine() or not pid.isdigit():
        return None
    return int(pid), rest.rpartition("-")[0]
