"""The report of a sweep: `SweepResults` in, a folder with three files out.

`index.html` is one page that loads nothing from anywhere, `trials.csv` one row per trial,
`summary.md` a dozen lines to paste. Equal results give equal bytes: no clock, no randomness.
Does not read the store, train, evaluate or know Ray and W&B.
"""

from pathlib import Path

from prefsweep.orchestrator.report.page import page_html
from prefsweep.orchestrator.report.tables import summary_markdown, trials_csv
from prefsweep.sweeps.records import SweepResults

__all__ = ["write_report"]


def write_report(results: SweepResults, folder: Path) -> None:
    """Write index.html, trials.csv and summary.md into `folder`, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "trials.csv", trials_csv(results))
    _write(folder / "summary.md", summary_markdown(results))
    _write(folder / "index.html", page_html(results))


def _write(path: Path, text: str) -> None:
    """Write beside the target, then rename: a reader never sees half a page.

    A lone surrogate, which UTF-8 cannot hold, becomes a question mark.
    """
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_bytes(text.encode("utf-8", errors="replace"))
    unfinished.replace(path)
