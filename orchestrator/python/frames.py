"""Converts the results of a sweep to pandas data frames."""

import io
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import pandas as pd

from prefsweep.orchestrator.report.tables import trials_csv
from prefsweep.orchestrator.results.compare import SweepComparison
from prefsweep.sweeps.records import EvaluationSample, SweepResults

TEXTS = ("trial_id", "name", "status", "error")
"""Columns of trials.csv that are texts, whatever they look like."""


def trials_frame(results: SweepResults) -> pd.DataFrame:
    """One row per policy, with the columns of trials.csv."""
    texts: Any = dict.fromkeys(TEXTS, str)
    return pd.read_csv(
        io.StringIO(trials_csv(results)), dtype=texts, keep_default_na=False, na_values=[""]
    )


def samples_frame(results: SweepResults) -> pd.DataFrame:
    """One row per completion, as samples.parquet has them."""
    rows = [
        {"trial_id": result.trial_id, "name": result.name, **asdict(sample)}
        for result in results.results
        for sample in result.samples
    ]
    columns = ["trial_id", "name", *(each.name for each in fields(EvaluationSample))]
    return pd.DataFrame(rows, columns=columns)


def curves_frame(results: SweepResults) -> pd.DataFrame:
    """One row per line of metrics.jsonl of every trial."""
    rows = [
        {"trial_id": result.trial_id, "name": result.name, **line}
        for result in results.results
        for line in result.history
    ]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["trial_id", "name"])


def matches_frame(found: SweepComparison) -> pd.DataFrame:
    """One row per grid point of both sweeps."""
    rows = [
        {
            "name": match.name,
            **{
                f"{label}_{key}": value
                for label, side in (("one", match.one), ("other", match.other))
                for key, value in (("reward", side.reward), *side.metrics.items())
            },
            "difference": match.difference,
            "difference_low": (match.difference_interval or (None, None))[0],
            "difference_high": (match.difference_interval or (None, None))[1],
            "same_trials": match.same_trials,
        }
        for match in found.matches
    ]
    return pd.DataFrame(rows)


def plan_frames(document: Mapping[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The stages and the trials of the document that `plan --json` prints."""
    return pd.DataFrame(document["stages"]), pd.DataFrame(document["trials"])


def as_html(frame: pd.DataFrame) -> str:
    """The frame as a table of a notebook; texts are escaped."""
    return frame.to_html(index=False, max_rows=200, border=0, na_rep="")
