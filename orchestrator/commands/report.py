"""The `report` command: the report in the store, or a part of it in a file."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from prefsweep.orchestrator.commands.options import Name, Storage
from prefsweep.orchestrator.display.terminal import say
from prefsweep.orchestrator.state.hints import DEFAULT_STORAGE
from prefsweep.sweeps.errors import UsageError


class Format(StrEnum):
    """What `report` writes."""

    HTML = "html"
    MD = "md"
    CSV = "csv"
    PNG = "png"
    SVG = "svg"
    PDF = "pdf"


_FILES = {Format.HTML: "index.html", Format.MD: "summary.md", Format.CSV: "trials.csv"}


def report(
    name: Name,
    storage: Storage = DEFAULT_STORAGE,
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="html: the page; md: a summary; csv: the trials; png, svg and pdf: the frontier.",
        ),
    ] = Format.HTML,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where to write. Default: the page stays in the store, md and csv are printed, "
            "pictures are written to NAME.FORMAT.",
        ),
    ] = None,
) -> None:
    """Write the report of a sweep, also of an unfinished one."""
    from prefsweep.orchestrator.report.publish import publish_report, report_path
    from prefsweep.orchestrator.results.results import read_results
    from prefsweep.orchestrator.state.sweep import open_sweep

    sweep = open_sweep(name, storage)
    publish_report(sweep)
    if form not in _FILES:
        from prefsweep.orchestrator.report.static import write_figure

        path = Path(to or f"{name}.{form}")
        if path.suffix != f".{form}":
            raise UsageError(f"--to {path}: the name of a {form} ends with .{form}")
        try:
            write_figure(read_results(sweep, details=False), path)
        except OSError as error:
            raise UsageError(f"--to {path} cannot be written: {error.strerror}") from None
        say(path)
        return
    stored = sweep.store.sweep(name, "report", _FILES[form])
    if to is not None:
        try:
            Path(to).write_bytes(sweep.store.read(stored) or b"")
        except OSError as error:
            raise UsageError(f"--to {to} cannot be written: {error.strerror}") from None
        say(to)
    elif form == Format.HTML:
        say(sweep.store.display(report_path(sweep)))
    else:
        say((sweep.store.read(stored) or b"").decode().rstrip("\n"))
