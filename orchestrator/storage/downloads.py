"""Copies of artefacts of a remote store on this machine, shared by its processes."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from prefsweep.orchestrator.storage.scratch import scratch_name


def download_cache() -> Path:
    """The folder of all copies, and of those in the making."""
    return Path(tempfile.gettempdir()) / "prefsweep-cache"


def downloaded(source: str, names: Iterable[str], copy: Callable[[str, Path], None]) -> Path:
    """The folder with the copy of `source`; made with `copy(name, path)` if it is not there."""
    cache = download_cache() / hashlib.sha256(source.encode()).hexdigest()[:24]
    if cache.is_dir():
        return cache
    partial = cache.with_name(scratch_name())
    try:
        for name in names:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            copy(name, partial / name)
        with suppress(OSError):  # another process of this machine was first
            partial.rename(cache)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return cache
