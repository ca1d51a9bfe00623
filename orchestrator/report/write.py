"""Writes the report of a sweep from `SweepResults`: a folder with four files.

`index.html` is a self-contained page, `trials.csv` has one row per trial, `samples.parquet` one row
per completion, and `summary.md` is a short text to paste. Equal results give equal bytes. Does not
read the store.
"""

from dataclasses import replace
from pathlib import Path

from prefsweep.orchestrator.report.findings import summary_markdown
from prefsweep.orchestrator.report.page import page_html
from prefsweep.orchestrator.report.tables import trials_csv
from prefsweep.orchestrator.results.analysis import compare, pool
from prefsweep.sweeps.records import EvaluationSample, SweepResults
from prefsweep.workers import tables


def write_report(results: SweepResults, folder: Path) -> None:
    """Write the report's files into `folder`, which is created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    pooled = pool(compare(results))
    _write(folder / "trials.csv", trials_csv(results, pooled))
    _write(folder / "summary.md", summary_markdown(results, pooled))
    _write_samples(results, folder / "samples.parquet")
    _write(folder / "index.html", page_html(results, pooled))


def _write_samples(results: SweepResults, path: Path) -> None:
    """Write all completions with their trial id and name, in the order of the results."""
    owners = {
        "trial_id": [result.trial_id for result in results.results for _ in result.samples],
        "name": [result.name for result in results.results for _ in result.samples],
    }
    samples = [_storable(sample) for result in results.results for sample in result.samples]
    unfinished = path.with_name(path.name + ".tmp")
    tables.write_records(samples, EvaluationSample, unfinished, owners)
    unfinished.replace(path)


def _storable(sample: EvaluationSample) -> EvaluationSample:
    """Replace lone surrogates, which UTF-8 cannot encode, by question marks."""
    try:
        sample.text.encode()
    except UnicodeEncodeError:
        return replace(sample, text=sample.text.encode(errors="replace").decode())
    return sample


def _write(path: Path, text: str) -> None:
    """Write atomically, by a rename. Lone surrogates become question marks."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_bytes(text.encode("utf-8", errors="replace"))
    unfinished.replace(path)
