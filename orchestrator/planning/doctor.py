"""What a run needs, looked at without running: one line a check, ok, warning or error.

Every check is one function of checks.py. They run side by side, each with a time limit, so that the
answer comes within seconds whatever hangs; nothing is downloaded, trained or started.
"""

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from prefsweep.orchestrator.planning.checks import ESTIMATE, Level, Line, all_checks
from prefsweep.sweeps.errors import SweepError
from prefsweep.sweeps.load import load_spec
from prefsweep.sweeps.spec import SweepSpec

LIMIT_S, CLUSTER_LIMIT_S = 30.0, 60.0
"""Longest wait for the checks, which all run at once; nodes may have to start Python first."""


@dataclass(frozen=True)
class Examination:
    """All lines, in the order of the checks."""

    lines: list[Line]
    hangs: bool
    """Whether a check is still at it; a process that ends normally would wait for it."""

    @property
    def stops_a_run(self) -> bool:
        """Whether a run would not get through."""
        return any(line.level == Level.ERROR for line in self.lines)


def examine(
    source: str | None,
    overrides: Sequence[str],
    storage: str,
    address: str | None,
    limit_s: float | None = None,
) -> Examination:
    """Look at everything that a run of the spec `source` needs, or any run at all (None)."""
    spec, lines = _load(source, overrides)
    address = address or os.environ.get("RAY_ADDRESS")
    if limit_s is None:
        limit_s = CLUSTER_LIMIT_S if address else LIMIT_S
    checks = all_checks(spec, storage, address)
    threads = [threading.Thread(target=check.run, daemon=True) for check in checks]
    for thread in threads:
        thread.start()
    _join(threads, limit_s)
    for check, thread in zip(checks, threads, strict=True):
        if thread.is_alive():
            found = f"no answer within {limit_s:g} s"
            lines.append(Line(check.name, check.silence, found, "see whether it can be reached"))
        else:
            lines += check.lines
    return Examination(_told_once(lines), any(thread.is_alive() for thread in threads))


def render(examination: Examination) -> Table:
    """The lines as a table."""
    styles = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "bold red"}
    table = Table("check", "", "found", "what to do", box=None, pad_edge=False)
    for line in examination.lines:
        state = Text(line.level, style=styles[line.level])
        table.add_row(line.check, state, Text(line.found, overflow="fold"), Text(line.remedy))
    return table


def document(examination: Examination) -> dict[str, Any]:
    """What `doctor --json` prints."""
    return {
        "ok": not examination.stops_a_run,
        "checks": [asdict(line) for line in examination.lines],
    }


def _load(source: str | None, overrides: Sequence[str]) -> tuple[SweepSpec | None, list[Line]]:
    if source is None:
        return None, []
    try:
        spec = load_spec(source, overrides)
    except SweepError as error:
        return None, [Line("spec", Level.ERROR, str(error))]
    found = f"{spec.name}, {len(spec.trials())} trials"
    return spec, [Line("spec", Level.OK, found)]


def _told_once(lines: Sequence[Line]) -> list[Line]:
    """The lines, without what the estimate ran into where another check has told of errors."""
    told = any(line.level == Level.ERROR and line.check != ESTIMATE for line in lines)
    return [
        Line(ESTIMATE, Level.WARNING, "not possible before the errors above are mended")
        if told and line.check == ESTIMATE and line.level == Level.ERROR
        else line
        for line in lines
    ]


def _join(threads: Sequence[threading.Thread], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
