"""The Python interface for scripts and notebooks: the commands, with data frames as results."""

import html
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefsweep import frames
from prefsweep.orchestrator.display import compare as compare_text
from prefsweep.orchestrator.display.terminal import Terminal, log_handler
from prefsweep.orchestrator.results.compare import SweepComparison, compare_sweeps
from prefsweep.orchestrator.results.results import read_results
from prefsweep.orchestrator.results.status import read_status, status_document
from prefsweep.orchestrator.state import sweep as stored
from prefsweep.orchestrator.state.hints import DEFAULT_STORAGE, STORAGE_VARIABLE
from prefsweep.orchestrator.state.quarantine import with_recorded_quarantine
from prefsweep.orchestrator.state.stored_spec import require_consent
from prefsweep.sweeps.errors import UsageError
from prefsweep.sweeps.load import load_spec, parse_spec
from prefsweep.sweeps.records import Errored, Stage
from prefsweep.sweeps.spec import SweepSpec

if TYPE_CHECKING:
    import pandas as pd

Overrides = Mapping[str, Any] | Sequence[str]
"""Dotted field -> value, or strings KEY=VALUE as on the command line."""
REPORT_HEIGHT_PX = 800
"""Height of a report in a notebook."""


def load(
    spec: str | os.PathLike[str] | SweepSpec | Mapping[str, Any],
    overrides: Overrides = (),
    *,
    storage: str | None = None,
) -> "Sweep":
    """Load a sweep from a spec: a YAML file, the name of a shipped sweep, a SweepSpec or a mapping.

    `storage` is the store's folder or URI; by default PREFSWEEP_STORAGE or ./runs. Nothing is run,
    but the spec's models and files are looked up. Raises SweepError.
    """
    given = _as_texts(overrides)
    if isinstance(spec, SweepSpec):
        spec = spec.model_dump(mode="json")
    if isinstance(spec, Mapping):
        found = parse_spec(json.dumps(spec), "the spec", given)
    else:
        found = load_spec(os.fspath(spec), given)
    return Sweep(stored.resolve(found, _storage(storage)))


def open_sweep(
    name: str, *, storage: str | None = None, trust_remote_code: bool = False
) -> "Sweep":
    """Open a sweep that was run before, by its name in the store.

    Because other users may be able to write to the store, `run` only runs code in the stored spec
    (of a model, or a reward function) with `trust_remote_code`. Raises UsageError if there is no
    such sweep.
    """
    sweep = stored.open_sweep(name, _storage(storage))
    return Sweep(sweep, _is_stored=True, _trusts=trust_remote_code)


def compare(
    one: "Sweep | str", other: "Sweep | str", *, storage: str | None = None
) -> "Comparison":
    """Compare two sweeps, paired by prompt; a sweep may be given by its name in `storage`."""
    both = [
        each._sweep if isinstance(each, Sweep) else stored.open_sweep(each, _storage(storage))
        for each in (one, other)
    ]
    return Comparison(compare_sweeps(both[0], both[1]))


@dataclass(frozen=True)
class Sweep:
    """A sweep in a store."""

    _sweep: stored.Sweep
    _is_stored: bool = field(default=False, kw_only=True)
    _trusts: bool = field(default=False, kw_only=True)

    @property
    def name(self) -> str:
        """The sweep's name in the store."""
        return self._sweep.spec.name

    @property
    def spec(self) -> SweepSpec:
        """The sweep's spec."""
        return self._sweep.spec

    @property
    def storage(self) -> str:
        """The store: full path of a folder, or URI."""
        return self._sweep.storage

    def plan(self) -> "Plan":
        """Plan a run: what is cached, what is new, and what it costs."""
        from prefsweep.orchestrator.planning.plan import plan_json

        document = plan_json(with_recorded_quarantine(self._sweep))
        return Plan(*frames.plan_frames(document), document["notes"])

    def run(
        self,
        *,
        inline: bool = False,
        address: str | None = None,
        until: Stage | str = Stage.REPORT,
        errored: Errored = "retry",
        progress: bool = True,
    ) -> "Results":
        """Run the unfinished part of the sweep, and return the results.

        With `inline`, everything runs in this process, without Ray. `address` is a Ray cluster
        (auto or HOST:PORT), by default RAY_ADDRESS or this machine. `errored` is what to do with
        trials that failed before: retry (if that may help), restart, resume or skip. `progress`
        prints a line for each event. Failed trials are rows of the results; errors that stop the
        sweep raise SweepError. A KeyboardInterrupt ends it at the next safe point.
        """
        from prefsweep.orchestrator.execution.cluster import open_cluster
        from prefsweep.orchestrator.pipeline import run_sweep

        if inline and address is not None:
            raise UsageError("inline=True and address exclude each other; give one")
        if str(until) not in list(Stage):
            raise UsageError(f"until={until!r}: there is no such stage; use {', '.join(Stage)}")
        if self._is_stored:
            require_consent(self._sweep, given=self._trusts)
        with _progress(is_shown=progress):
            run_sweep(
                self._sweep,
                lambda: open_cluster(self._sweep, address=address, inline=inline),
                until=str(until),
                errored=errored,
            )
        return self.results()

    def results(self) -> "Results":
        """The results so far, as data frames."""
        results = read_results(with_recorded_quarantine(self._sweep))
        return Results(
            frames.trials_frame(results),
            frames.samples_frame(results),
            frames.curves_frame(results),
        )

    def report(self) -> "Report":
        """Write the report if it is not up to date; a notebook displays the returned object."""
        from prefsweep.orchestrator.report.publish import is_drawn, publish_report, report_path

        sweep = with_recorded_quarantine(self._sweep)
        if not is_drawn(sweep):
            publish_report(sweep)
        path = report_path(sweep)
        page = sweep.store.read(path)
        if page is None:
            raise UsageError(f"{sweep.store.display(path)} is gone; call report() again")
        return Report(sweep.store.display(path), page.decode())

    def status(self) -> dict[str, Any]:
        """The status of stages and trials, as `prefsweep status --json` prints it."""
        return status_document(read_status(self._sweep))

    def __repr__(self) -> str:
        return f"<Sweep {self.name}: {len(self._sweep.trials)} trials, in {self.storage}>"


@dataclass(frozen=True)
class Plan:
    """The plan of a run."""

    stages: "pd.DataFrame"
    """One row per stage: cached (yes, new or the number of shards), rows, path."""
    trials: "pd.DataFrame"
    """One row per trial: its ID, what of it is cached, and its learning rate."""
    notes: list[str]
    """What changed since the last run, and estimates of time, cost and disk, a line each."""

    def __str__(self) -> str:
        tables = (self.stages.to_string(index=False), self.trials.to_string(index=False))
        return "\n\n".join([*tables, "\n".join(self.notes)])

    def _repr_html_(self) -> str:
        lines = "<br>".join(map(html.escape, self.notes))
        return f"{frames.as_html(self.stages)}{frames.as_html(self.trials)}<p>{lines}</p>"


@dataclass(frozen=True)
class Results:
    """The results of a sweep, as data frames."""

    trials: "pd.DataFrame"
    """One row per policy, the untrained one first, with the columns of trials.csv."""
    samples: "pd.DataFrame"
    """One row per completion of the evaluations, with its policy, prompt and reward."""
    curves: "pd.DataFrame"
    """One row per logged training step and trial, with the metrics of metrics.jsonl."""

    def _repr_html_(self) -> str:
        return frames.as_html(self.trials)


@dataclass(frozen=True)
class Comparison:
    """A comparison of two sweeps."""

    details: SweepComparison
    """What `prefsweep compare --json` prints."""

    @property
    def matches(self) -> "pd.DataFrame":
        """One row per grid point that both have finished, with the difference of the rewards."""
        return frames.matches_frame(self.details)

    def __str__(self) -> str:
        return compare_text.markdown(self.details)

    def _repr_html_(self) -> str:
        notes = "<br>".join(map(html.escape, self.details.notes))
        return f"<p>{notes}</p>{frames.as_html(self.matches)}"


@dataclass(frozen=True)
class Report:
    """A written report."""

    path: str
    """Where it is."""
    page: str = field(repr=False)
    """The page, one self-contained HTML document."""

    def _repr_html_(self) -> str:
        # In an iframe, the page's styles and scripts do not affect the notebook.
        return (
            f'<iframe srcdoc="{html.escape(self.page)}" sandbox="allow-scripts allow-downloads" '
            f'style="width: 100%; height: {REPORT_HEIGHT_PX}px; border: 0"></iframe>'
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to a file."""
        Path(path).write_text(self.page, encoding="utf-8")


def _storage(storage: str | None) -> str:
    return storage or os.environ.get(STORAGE_VARIABLE) or DEFAULT_STORAGE


def _as_texts(overrides: Overrides) -> list[str]:
    if not isinstance(overrides, Mapping):
        return list(overrides)
    return [
        f"{key}={json.dumps(value, default=os.fspath, allow_nan=False)}"
        for key, value in overrides.items()
    ]


@contextmanager
def _progress(*, is_shown: bool) -> Iterator[None]:
    """Print log messages inside the block."""
    if not is_shown:
        yield
        return
    logger = logging.getLogger("prefsweep")
    handler = log_handler(Terminal(force_jupyter=False))  # lines of text, in a notebook too
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
