"""The sweeps of a store, one line each: `status` without a name. Reads two small files a sweep."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from prefsweep.orchestrator.state.lease import alive, read_holder
from prefsweep.orchestrator.state.sweep_record import read_state
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.records import Status


@dataclass(frozen=True)
class Listed:
    """A sweep as its last driver left it."""

    sweep: str
    status: str
    """"" where no driver has said any."""
    updated: float | None
    """Seconds since 1970."""
    running: bool


def sweeps(storage: str) -> list[Listed]:
    """All sweeps of a store, by name."""
    store = Store(storage)
    holders = {name: holder for name in store.sweeps() if (holder := read_holder(store, name))}
    running = alive(store, holders)
    return [_listed(store, name, name in running) for name in store.sweeps()]


def _listed(store: Store, name: str, is_running: bool) -> Listed:
    state = read_state(store, name)
    status = state.status
    if status == Status.RUNNING and not is_running:  # its driver has died
        status = Status.INTERRUPTED
    return Listed(name, str(status), state.updated or None, is_running)


def document(listed: list[Listed]) -> dict[str, Any]:
    """What `status --json` prints without a name."""
    return {"sweeps": [asdict(sweep) for sweep in listed]}


def render(listed: list[Listed]) -> Table | Text:
    """A table, or that there is nothing."""
    if not listed:
        return Text("there are no sweeps in this store")
    table = Table("sweep", "status", "updated", box=None, pad_edge=False)
    for sweep in listed:
        table.add_row(Text(sweep.sweep), Text(sweep.status or "unknown"), _time(sweep.updated))
    return table


def _time(updated: float | None) -> str:
    if updated is None:
        return ""
    try:
        return f"{datetime.fromtimestamp(updated).astimezone():%Y-%m-%d %H:%M:%S %Z}"
    except (ValueError, OverflowError, OSError):  # damaged: a time that no calendar has
        return ""
