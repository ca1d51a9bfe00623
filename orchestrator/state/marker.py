"""Whether a folder is a store: a run marks it, and `gc` deletes nothing where there is no store.

A store made before there were marks is known by a sweep in it that can be read.
"""

import logging
from contextlib import suppress

from prefsweep.orchestrator.state.sweep import open_sweep
from prefsweep.orchestrator.store.paths import FOLDERS, MARKER
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.errors import UsageError

log = logging.getLogger(__name__)

_SHOWN = 5
"""Names of other things in the folder that are told."""


def claim(store: Store) -> None:
    """Mark the place of a store; warns where other things are in it already."""
    if store.is_marked:
        return
    others = [name for name in store.names("") if _is_content(store, name)]
    if others and not _has_readable_sweep(store):
        more = "" if len(others) <= _SHOWN else f" and {len(others) - _SHOWN} more"
        log.warning(
            "%s is not empty and is not a prefsweep store (it has %s%s). The sweep is stored "
            "beside what is there, which stays; to keep them apart, name another --storage",
            store.display("").rstrip("/"),
            ", ".join(others[:_SHOWN]),
            more,
        )
    store.mark()


def require_store(store: Store) -> None:
    """Raises UsageError where no run has ever stored anything."""
    if store.is_marked or _has_readable_sweep(store):
        return
    raise UsageError(
        f"--storage {store.uri} is not a prefsweep store: it has neither {MARKER} nor a sweep that "
        "can be read; nothing was deleted. Name the right folder; a store of an older version "
        "is recognized after the next run in it"
    )


def _is_content(store: Store, name: str) -> bool:
    """Whether something is more than what a system or an empty store puts there."""
    if name.startswith(".") or name == "lost+found":
        return False
    return name not in FOLDERS or bool(store.names(name))


def _has_readable_sweep(store: Store) -> bool:
    for name in store.sweeps():
        with suppress(UsageError):
            open_sweep(name, store.uri)
            return True
    return False
