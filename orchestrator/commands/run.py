"""What `run` and `resume` do: a sweep with a view of it as it runs, and at the end what is left.

Comes in: the sweep, and what the command line says of it. Goes out: lines, and an exit code.
"""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape

from prefsweep.orchestrator.commands.options import exclusive
from prefsweep.orchestrator.state.hints import hint
from prefsweep.sweeps.errors import INTERRUPTED
from prefsweep.sweeps.records import Stage, Status, TrialResult

if TYPE_CHECKING:
    from prefsweep.orchestrator.execution.cluster import Cluster
    from prefsweep.orchestrator.state.sweep import Sweep
    from prefsweep.sweeps.records import Errored

console = Console()
errors = Console(stderr=True)


@dataclass(frozen=True)
class How:
    """Where a run takes place, how far it goes, and what becomes of failed trials."""

    address: str | None
    until: Stage
    inline: bool
    errored: "Errored"

    def __post_init__(self) -> None:
        exclusive({"--inline": self.inline, "--address": self.address})


def run_with_view(sweep: "Sweep", how: How) -> None:
    """Run what is missing of a sweep. Raises SweepError, or Exit where something has failed."""
    from prefsweep.orchestrator.display.live import LiveView, log_handler
    from prefsweep.orchestrator.pipeline import run_sweep
    from prefsweep.orchestrator.report.publish import report_path
    from prefsweep.orchestrator.results.status import StatusReader
    from prefsweep.orchestrator.state.quarantine import as_recorded, num_quarantined

    name, storage = sweep.spec.name, sweep.storage
    logger = logging.getLogger("prefsweep")
    logger.setLevel(logging.INFO)
    logger.addHandler(log_handler(console))
    try:
        with LiveView(StatusReader(sweep).read, console):
            results = run_sweep(
                sweep, lambda: _cluster(sweep, how), until=how.until, errored=how.errored
            )
    except KeyboardInterrupt:
        resume = hint("resume", name, storage=storage)
        _tell(f"interrupted; run the same command again to resume, or {resume}")
        sys.exit(INTERRUPTED)
    num_left_out = num_quarantined(as_recorded(sweep))
    if num_left_out:
        status = hint("status", name, storage=storage)
        _tell(
            f"{num_left_out} prompts end every worker that takes them and were left out; "
            f"{status} names them, --restart-errored tries them again"
        )
    if _told_failures(sweep, results, how.until) or num_left_out:
        raise typer.Exit(1)
    if how.until == Stage.REPORT:
        print(sweep.store.display(report_path(sweep)))


def _cluster(sweep: "Sweep", how: How) -> "Cluster":
    from prefsweep.orchestrator.execution.cluster import InlineCluster, RayCluster, attach
    from prefsweep.orchestrator.execution.placement import resources_of

    if how.inline:
        return InlineCluster(sweep.spec.resources)
    where = how.address or os.environ.get("RAY_ADDRESS")
    if where:
        return attach(sweep, where)
    max_stall_s = sweep.spec.retries.max_stall_s
    return RayCluster(resources_of(sweep.spec), max_stall_s=max_stall_s)


def _told_failures(sweep: "Sweep", results: Sequence[TrialResult], until: Stage) -> bool:
    """Whether trials that were to run have not succeeded; says which."""
    failed = [result.name for result in results if result.status != Status.SUCCEEDED]
    if not failed or until not in (Stage.TRIALS, Stage.REPORT):
        return False
    status = hint("status", sweep.spec.name, storage=sweep.storage)
    num = f"{len(failed)} of {len(sweep.trials)}"
    _tell(f"{num} trials have not succeeded: {', '.join(failed)}; {status} says why")
    return True


def _tell(message: str) -> None:
    errors.print(escape(message), soft_wrap=True)
