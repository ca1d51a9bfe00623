"""Local copies of artefacts of a remote store, shared by this user's processes on this machine.

They are laid out as in the store, with one folder per version, and are reused by later runs until
they are dropped. No other user can read or change them.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from prefsweep.orchestrator.store.scratch import private_folder, scratch_name


def download_cache() -> Path:
    """The folder of all copies, unfinished ones included."""
    return private_folder("prefsweep-cache")


def downloaded(
    uri: str, path: str, version: object, names: Iterable[str], copy: Callable[[str, Path], None]
) -> Path:
    """The folder with a copy of the artefact at `path`; if missing, `copy(name, file)` makes it."""
    cache = _copies(uri, path) / hashlib.sha256(str(version).encode()).hexdigest()[:24]
    if cache.is_dir():
        return cache
    partial = download_cache() / scratch_name()
    try:
        for name in names:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            copy(name, partial / name)
        cache.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # another process of this machine has made the same copy
            partial.rename(cache)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return cache


def drop_copies(uri: str, path: str) -> None:
    """Delete the copies of everything at or below `path`."""
    shutil.rmtree(_copies(uri, path), ignore_errors=True)


def _copies(uri: str, path: str) -> Path:
    return download_cache() / hashlib.sha256(uri.encode()).hexdigest()[:24] / path
