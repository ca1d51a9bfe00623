"""Checks that everything a run needs is available.

The checks (checks.py) run concurrently with a common timeout, so that a hanging one delays the
result by seconds only.
"""

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from prefsweep.orchestrator.planning.checks import ESTIMATE, Check, Level, Line, basic_checks
from prefsweep.orchestrator.planning.tracker_checks import tracker_checks
from prefsweep.sweeps.errors import SweepError
from prefsweep.sweeps.load import load_spec
from prefsweep.sweeps.spec import SweepSpec

LIMIT_S, CLUSTER_LIMIT_S = 30.0, 60.0
"""Timeouts of all checks together; on a cluster, nodes may have to start Python first."""


@dataclass(frozen=True)
class DoctorReport:
    """The lines of all checks, in their order."""

    lines: list[Line]
    hangs: bool
    """Whether a check is still running; a normal exit of the process would wait for it."""

    @property
    def stops_a_run(self) -> bool:
        """Whether a run would fail."""
        return any(line.level == Level.ERROR for line in self.lines)


def run_checks(
    source: str | None,
    overrides: Sequence[str],
    storage: str,
    address: str | None,
    limit_s: float | None = None,
) -> DoctorReport:
    """Run the checks for the spec `source` or, without one, those that apply to every run."""
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
            found = f"no response within {limit_s:g} s"
            lines.append(
                Line(check.name, check.on_timeout, found, "check whether it can be reached")
            )
        else:
            lines += check.lines
    return DoctorReport(_without_consequences(lines), any(thread.is_alive() for thread in threads))


def render(report: DoctorReport) -> Table:
    """The lines as a table for a terminal."""
    styles = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "bold red"}
    table = Table("check", "", "found", "what to do", box=None, pad_edge=False)
    for line in report.lines:
        state = Text(line.level, style=styles[line.level])
        table.add_row(line.check, state, Text(line.found, overflow="fold"), Text(line.remedy))
    return table


def document(report: DoctorReport) -> dict[str, Any]:
    """The document that `doctor --json` prints."""
    return {
        "ok": not report.stops_a_run,
        "checks": [asdict(line) for line in report.lines],
    }


def all_checks(spec: SweepSpec | None, storage: str, address: str | None) -> list[Check]:
    """The checks in the order of the output."""
    return [*basic_checks(spec, storage, address), *tracker_checks(spec)]


def _load(source: str | None, overrides: Sequence[str]) -> tuple[SweepSpec | None, list[Line]]:
    if source is None:
        return None, []
    try:
        spec = load_spec(source, overrides)
    except SweepError as error:
        return None, [Line("spec", Level.ERROR, str(error))]
    found = f"{spec.name}, {len(spec.trials())} trials"
    return spec, [Line("spec", Level.OK, found)]


def _without_consequences(lines: Sequence[Line]) -> list[Line]:
    """Replace an error of the estimate if another check has an error: it is its consequence."""
    has_errors = any(line.level == Level.ERROR and line.check != ESTIMATE for line in lines)
    return [
        Line(ESTIMATE, Level.WARNING, "not possible until the errors above are fixed")
        if has_errors and line.check == ESTIMATE and line.level == Level.ERROR
        else line
        for line in lines
    ]


def _join(threads: Sequence[threading.Thread], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
