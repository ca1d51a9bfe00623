"""Renders a SweepStatus as tables for a terminal.

Names and messages are shown as plain text, never as markup or terminal codes.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from prefsweep.orchestrator.results.status import ListedSweep
from prefsweep.orchestrator.state.hints import hint
from prefsweep.orchestrator.text import clean, encodable, short_duration
from prefsweep.sweeps.records import Metrics, StageStatus, Status, SweepStatus, TrialStatus

MIN_TRIAL_ROWS = 3
"""Trials shown even if the terminal is too low for them."""
ENOUGH_TRIAL_ROWS = 10
"""If the terminal has room for fewer trials, finished stages are folded into one line."""
LINES_AROUND = 8
"""Lines for the headline, the table headers and the shell prompt."""
MAX_FAILURES = 5
"""Failure messages shown below the table."""
BAR_WIDTH = 8
"""Characters of a trial's progress bar."""

_STYLES = {
    Status.PENDING: "dim",
    Status.RUNNING: "cyan",
    Status.SUCCEEDED: "green",
    Status.FAILED: "bold red",
    Status.INTERRUPTED: "yellow",
}
_MARKS = {
    Status.PENDING: "·",
    Status.RUNNING: "▸",
    Status.SUCCEEDED: "✓",
    Status.FAILED: "✗",
    Status.INTERRUPTED: "‖",
}
_ASCII_MARKS = {
    Status.PENDING: ".",
    Status.RUNNING: ">",
    Status.SUCCEEDED: "+",
    Status.FAILED: "x",
    Status.INTERRUPTED: "|",
}
_URGENCY = (
    Status.RUNNING,
    Status.FAILED,
    Status.INTERRUPTED,
    Status.SUCCEEDED,
    Status.PENDING,
)
"""Order in which trials are shown if there are more trials than rows."""


_METRIC_COLUMNS = (
    ("loss", 0, ("loss",)),
    ("margin", 90, ("rewards/margins", "margin_test")),
    ("grad_norm", 100, ("grad_norm",)),
    ("reward_mean", 76, ("reward_mean", "eval/reward_mean")),
    ("kl", 0, ("kl", "eval/kl")),
)
"""Header, minimum terminal width in characters, metrics of which the first available is shown."""


def render(status: SweepStatus) -> RenderableType:
    """The sweep as a headline, a table of stages, a table of trials and failures.

    On a terminal the tables are cut to the height of the screen; elsewhere all trials are listed.
    """
    return _View(status)


@dataclass(frozen=True)
class _View:
    """Adapts to the width and encoding of the console it is printed on."""

    status: SweepStatus

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        marks = _ASCII_MARKS if options.ascii_only else _MARKS
        failures = list(_failures(self.status, marks, options))
        stages, num_trials = self.status.stages, len(self.status.trials)
        num_rows = num_trials
        if console.is_terminal:
            lines = console.height - len(failures) - LINES_AROUND
            if lines - len(stages) < min(num_trials, ENOUGH_TRIAL_ROWS):
                stages = _unfinished(stages)
            num_rows = max(MIN_TRIAL_ROWS, lines - len(stages))
        yield _headline(self.status)
        if self.status.stages:
            yield _stage_table(stages, len(self.status.stages) - len(stages), marks, options)
        if self.status.trials:
            yield _trial_table(self.status.trials, num_rows, marks, options)
        yield from failures


def _unfinished(stages: Sequence[StageStatus]) -> list[StageStatus]:
    """The stages that have not finished."""
    return [stage for stage in stages if stage.status is not Status.SUCCEEDED]


def _headline(status: SweepStatus) -> Text:
    counts = Counter(trial.status for trial in status.trials)
    parts = [f"{counts[kind]} {kind}" for kind in _URGENCY if counts[kind]]
    if status.elapsed_s is not None:
        parts.append(f"{short_duration(status.elapsed_s)} so far")
    if status.eta_s is not None:
        parts.append(f"{short_duration(status.eta_s)} to go")
    counted = (clean(status.sweep), "bold"), "  ", ", ".join(parts)
    return Text.assemble(*counted, *_driver(status), *_quarantined(status))


def _quarantined(status: SweepStatus) -> Iterator[tuple[str, str]]:
    """The prompts that are skipped because they crash every worker."""
    for stage, prompt_ids in status.quarantined.items():
        shown = ", ".join(clean(prompt_id) for prompt_id in prompt_ids)
        yield f"\n{stage}: quarantined prompts {shown}; --restart-errored retries them", "yellow"


def _driver(status: SweepStatus) -> Iterator[tuple[str, str]]:
    """The driver of the sweep and whether it is alive."""
    if status.driver is None:
        return
    since = datetime.fromtimestamp(status.driver.since).astimezone()
    who = f"pid {status.driver.pid} on {clean(status.driver.host)}"
    if not status.driver.responding:
        remedy = f"`kill -CONT {status.driver.pid}` continues it"
        yield f"\nnot responding: its driver, {who}, is stopped; {remedy}", "yellow"
    elif status.driver.alive:
        yield f"\nrun by {who} since {since:%Y-%m-%d %H:%M:%S %Z}", "dim"
    else:
        resume = "`prefsweep resume`"
        if status.storage is not None:
            resume = clean(hint("resume", status.sweep, storage=status.storage))
        yield f"\ninterrupted: its driver, {who}, has died; {resume} resumes it", "yellow"


def render_list(sweeps: Sequence[ListedSweep]) -> Table | Text:
    """One line per sweep, or a note that there is none."""
    if not sweeps:
        return Text("there are no sweeps in this store")
    table = Table("sweep", "status", "updated", box=None, pad_edge=False)
    for sweep in sweeps:
        table.add_row(Text(sweep.sweep), Text(sweep.status or "unknown"), _date(sweep.updated))
    return table


def _date(updated: float | None) -> str:
    if updated is None:
        return ""
    try:
        return f"{datetime.fromtimestamp(updated).astimezone():%Y-%m-%d %H:%M:%S %Z}"
    except (ValueError, OverflowError, OSError):  # damaged: a time that no calendar has
        return ""


def _stage_table(
    stages: Sequence[StageStatus],
    num_hidden: int,
    marks: dict[Status, str],
    options: ConsoleOptions,
) -> Table:
    table = _table()
    table.add_column("", min_width=1)
    table.add_column("stage", no_wrap=True)
    for header in ("done", "rows", "rows/s", "time"):
        table.add_column(header, justify="right", no_wrap=True)
    for stage in stages:
        total = "" if stage.num_total is None else f"/{stage.num_total}"
        time = "" if stage.eta_s is None else f"eta {short_duration(stage.eta_s)}"
        table.add_row(
            Text(marks[stage.status], _STYLES[stage.status]),
            _name(stage.name, options),
            f"{stage.num_done}{total}",
            "" if stage.rows is None else str(stage.rows),
            "" if stage.rows_per_s is None else f"{stage.rows_per_s:.3g}",
            time if stage.seconds is None else short_duration(stage.seconds),
        )
    if num_hidden:
        done = Text(marks[Status.SUCCEEDED], _STYLES[Status.SUCCEEDED])
        table.add_row(done, Text(f"{num_hidden} finished", "dim"))
    return table


def _trial_table(
    trials: Sequence[TrialStatus], num_rows: int, marks: dict[Status, str], options: ConsoleOptions
) -> Table:
    """One row per trial. Narrow terminals omit columns; only names are truncated."""
    shown = _most_urgent(trials, num_rows)
    columns = [
        ("status", 70, [Text(str(trial.status), _STYLES[trial.status]) for trial in shown]),
        ("step", 0, [_step(trial) for trial in shown]),
        ("", 106, [_bar(trial) for trial in shown]),
        *(
            (header, min_width, [_metric(trial.metrics, keys) for trial in shown])
            for header, min_width, keys in _METRIC_COLUMNS
        ),
        ("time", 0, [_time(trial) for trial in shown]),
    ]
    columns = [column for column in columns if options.max_width >= column[1]]
    table = _table()
    table.add_column("", min_width=1)
    table.add_column("trial")  # rich narrows only columns that may wrap; _name does not wrap
    for header, _, cells in columns:
        widest = max(len(header), *(_cell_width(cell) for cell in cells))
        justify = "left" if header == "status" else "right"
        table.add_column(header, justify=justify, no_wrap=True, min_width=widest)
    for index, trial in enumerate(shown):
        mark = Text(marks[trial.status], _STYLES[trial.status])
        cells = (column_cells[index] for _, _, column_cells in columns)
        table.add_row(mark, _name(trial.name, options), *cells)
    if len(shown) < len(trials):
        table.add_row("", Text(f"+{len(trials) - len(shown)} more", "dim"))  # the headline counts
    return table


def _cell_width(cell: Text | ProgressBar) -> int:
    return cell.cell_len if isinstance(cell, Text) else BAR_WIDTH


def _most_urgent(trials: Sequence[TrialStatus], num: int) -> list[TrialStatus]:
    """All trials in grid order or, if there are more than `num`, the most urgent ones.

    Running and failed trials come first; succeeded ones are ordered by reward.
    """
    if len(trials) <= num:
        return list(trials)
    return sorted(trials, key=_urgency)[:num]


def _urgency(trial: TrialStatus) -> tuple[int, float]:
    reward = trial.metrics.get("reward_mean") if trial.status is Status.SUCCEEDED else None
    return _URGENCY.index(trial.status), math.inf if reward is None else -reward


def _failures(
    status: SweepStatus, marks: dict[Status, str], options: ConsoleOptions
) -> Iterator[RenderableType]:
    failed = [trial for trial in status.trials if trial.failure is not None]
    for trial in failed[:MAX_FAILURES]:
        if trial.failure is not None:
            advice = f" ({trial.failure.advice})" if trial.failure.advice else ""
            where = f" Its log: {trial.failure.log_path}" if trial.failure.log_path else ""
            message = f"{trial.name}: {trial.failure.message}{advice}{where}"
            text = encodable(message, options.encoding)
            line = Text.assemble((f"{marks[trial.status]} ", _STYLES[trial.status]), clean(text))
            yield line
    if len(failed) > MAX_FAILURES:
        yield Text(f"and {len(failed) - MAX_FAILURES} more failures", "dim")


def _table() -> Table:
    return Table(box=None, expand=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")


def _name(text: str, options: ConsoleOptions) -> Text:
    return Text(clean(encodable(text, options.encoding)), no_wrap=True, overflow="ellipsis")


def _step(trial: TrialStatus) -> Text:
    return Text(f"{trial.step}" if trial.max_steps is None else f"{trial.step}/{trial.max_steps}")


def _bar(trial: TrialStatus) -> ProgressBar | Text:
    if not trial.max_steps or trial.status is Status.PENDING:
        return Text("")
    return ProgressBar(total=trial.max_steps, completed=trial.step, width=BAR_WIDTH)


def _metric(metrics: Metrics, keys: Sequence[str]) -> Text:
    value = next((metrics[key] for key in keys if metrics.get(key) is not None), None)
    if value is None:
        return Text("")
    return Text(f"{value:.4g}", "" if abs(value) < float("inf") else "bold red")


def _time(trial: TrialStatus) -> Text:
    """Time left for a running trial, time taken by any other."""
    if trial.seconds is None:
        return Text("")
    if trial.max_steps and trial.step_seconds is not None:
        left_s = trial.step_seconds * max(trial.max_steps - trial.step, 0)
        return Text(f"eta {short_duration(left_s)}")
    return Text(short_duration(trial.seconds))
