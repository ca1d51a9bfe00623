"""Marks folders as stores, and checks that a folder is one before `gc` deletes from it.

A store of an older version has no mark; it is recognized by a readable sweep in it.
"""

import logging
from contextlib import suppress

from prefsweep.orchestrator.state.sweep import open_sweep
from prefsweep.orchestrator.store.paths import FOLDERS, MARKER
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.errors import UsageError

log = logging.getLogger(__name__)

_SHOWN = 5
"""Number of other files and folders that the warning lists."""


def claim(store: Store) -> None:
    """Mark a folder as a store; logs a warning if it contains other files already."""
    if store.is_marked:
        return
    others = [name for name in store.names("") if _is_content(store, name)]
    if others and not _has_readable_sweep(store):
        more = "" if len(others) <= _SHOWN else f" and {len(others) - _SHOWN} more"
        log.warning(
            "%s is not empty and is not a prefsweep store (it contains %s%s). The sweep is stored "
            "beside these files, which are never changed; to avoid that, use another --storage",
            store.display("").rstrip("/"),
            ", ".join(others[:_SHOWN]),
            more,
        )
    store.mark()


def require_store(store: Store) -> None:
    """Raises UsageError if no run has stored anything there."""
    if store.is_marked or _has_readable_sweep(store):
        return
    raise UsageError(
        f"--storage {store.uri} is not a prefsweep store: it has neither {MARKER} nor a readable "
        "sweep; nothing was deleted. Check the folder; a store of an older version is recognized "
        "after the next run in it"
    )


def _is_content(store: Store, name: str) -> bool:
    """Whether an entry of the folder is neither the system's nor an empty folder of the store."""
    if name.startswith(".") or name == "lost+found":
        return False
    return name not in FOLDERS or bool(store.names(name))


def _has_readable_sweep(store: Store) -> bool:
    for name in store.sweeps():
        with suppress(UsageError):
            open_sweep(name, store.uri)
            return True
    return False
