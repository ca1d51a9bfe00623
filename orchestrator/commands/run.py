"""`run` and `resume`: run a sweep with the live view, then print failures and set the exit code."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from prefsweep.orchestrator.commands.options import exclusive
from prefsweep.orchestrator.display.terminal import console, errors, log_handler, say
from prefsweep.orchestrator.state.hints import hint
from prefsweep.sweeps.errors import INTERRUPTED
from prefsweep.sweeps.records import Stage, Status, TrialResult
from prefsweep.sweeps.validation_messages import listed

if TYPE_CHECKING:
    from prefsweep.orchestrator.state.sweep import Sweep
    from prefsweep.sweeps.records import Errored


@dataclass(frozen=True)
class RunOptions:
    """Where a run takes place, its last stage, and what happens to failed trials."""

    address: str | None
    until: Stage
    inline: bool
    errored: "Errored"

    def __post_init__(self) -> None:
        exclusive({"--inline": self.inline, "--address": self.address})


def run_with_view(sweep: "Sweep", options: RunOptions) -> None:
    """Run a sweep and print what failed. Raises SweepError, or Exit(1) after failures."""
    from prefsweep.orchestrator.display.live import LiveView
    from prefsweep.orchestrator.execution.cluster import open_cluster
    from prefsweep.orchestrator.pipeline import run_sweep
    from prefsweep.orchestrator.report.publish import report_path
    from prefsweep.orchestrator.results.status import StatusReader
    from prefsweep.orchestrator.state.quarantine import num_quarantined, with_recorded_quarantine

    name, storage = sweep.spec.name, sweep.storage
    logger = logging.getLogger("prefsweep")
    logger.setLevel(logging.INFO)
    logger.addHandler(log_handler(console))
    try:
        with LiveView(StatusReader(sweep).read, console):
            results = run_sweep(
                sweep,
                lambda: open_cluster(sweep, address=options.address, inline=options.inline),
                until=options.until,
                errored=options.errored,
            )
    except KeyboardInterrupt:
        resume = hint("resume", name, storage=storage)
        _print(f"interrupted; run the same command again to resume, or {resume}")
        sys.exit(INTERRUPTED)
    num_skipped = num_quarantined(with_recorded_quarantine(sweep))
    if num_skipped:
        status = hint("status", name, storage=storage)
        _print(
            f"{num_skipped} prompts crashed every worker that processed them and were skipped; "
            f"{status} lists them, --restart-errored retries them"
        )
    if _report_failures(sweep, results, options.until) or num_skipped:
        raise typer.Exit(1)
    if options.until == Stage.REPORT:
        say(sweep.store.display(report_path(sweep)))


def _report_failures(sweep: "Sweep", results: Sequence[TrialResult], until: Stage) -> bool:
    """Print the trials that have not succeeded; returns whether there are any."""
    failed = [result.name for result in results if result.status != Status.SUCCEEDED]
    if not failed or until not in (Stage.TRIALS, Stage.REPORT):
        return False
    status = hint("status", sweep.spec.name, storage=sweep.storage)
    num = f"{len(failed)} of {len(sweep.trials)}"
    _print(f"{num} trials have not succeeded: {listed(failed)}; {status} shows why")
    return True


def _print(message: str) -> None:
    errors.print(escape(message), soft_wrap=True)
