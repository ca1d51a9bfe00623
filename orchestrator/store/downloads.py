"""Copies of artefacts of a remote store on this machine, shared by the processes of its user.

They lie as in the store, one folder a version, and stay for the next run until they are dropped.
No other user can read or change them.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from prefsweep.orchestrator.store.scratch import private_folder, scratch_name


def download_cache() -> Path:
    """The folder of all copies, and of those in the making."""
    return private_folder("prefsweep-cache")


def downloaded(
    uri: str, path: str, version: object, names: Iterable[str], copy: Callable[[str, Path], None]
) -> Path:
    """The folder with a copy of what is at `path`; made with `copy(name, file)` if need be."""
    cache = _copies(uri, path) / hashlib.sha256(str(version).encode()).hexdigest()[:24]
    if cache.is_dir():
        return cache
    partial = download_cache() / scratch_name()
    try:
        for name in names:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            copy(name, partial / name)
        cache.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # another process of this machine was first
            partial.rename(cache)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return cache


def drop_copies(uri: str, path: str) -> None:
    """Delete the copies of all that is at or below `path`."""
    shutil.rmtree(_copies(uri, path), ignore_errors=True)


def _copies(uri: str, path: str) -> Path:
    return download_cache() / hashlib.sha256(uri.encode()).hexdigest()[:24] / path
