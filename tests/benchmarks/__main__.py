"""`make bench`: run the benchmarks, or those that are named, print a table and write JSON.

`chaos [--seeds 10]` is a soak that takes its time and runs only when it is named.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from prefsweep.orchestrator.tasks.worker import set_up_worker
from tests.benchmarks import (
    chaos,
    generation,
    grid,
    launches,
    overhead,
    profile,
    scale,
    statistics,
    trial,
)

BENCHMARKS = {
    "trial": trial.run,
    "profile": profile.run,
    "launches": launches.run,
    "grid": grid.run,
    "generation": generation.run,
    "overhead": overhead.run,
    "scale": scale.run,
    "statistics": statistics.run,
}
SOAK = "chaos"
OUTPUT = Path("benchmarks.json")


def main(names: list[str], num_seeds: int = chaos.NUM_SEEDS) -> None:
    """Run the named benchmarks (none: all but the soak) on all cores of this machine."""
    if names == [SOAK]:
        with tempfile.TemporaryDirectory() as folder:
            chaos.run(Path(folder), num_seeds)
        return
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        sys.exit(f"{', '.join(unknown)}: no such benchmark; there are {', '.join(BENCHMARKS)}")
    set_up_worker(os.cpu_count() or 1)
    rows: list[dict[str, Any]] = []
    for name in names or BENCHMARKS:
        with tempfile.TemporaryDirectory() as folder:
            rows += BENCHMARKS[name](Path(folder))
    table = Table("benchmark", "baseline", "baseline s", "ours s", "ratio", "loss difference")
    for row in rows:
        if "promised" in row:  # printed where it was found
            continue
        table.add_row(
            row["benchmark"],
            row.get("baseline", ""),
            _number(row, "baseline_s", ".2f"),
            _number(row, "ours_s", ".2f"),
            _number(row, "ratio", ".2f"),
            _number(row, "largest relative loss difference", ".1e"),
        )
    console = Console(width=140)
    console.print(table)
    for row in rows:
        if "shares" in row or "operators a step" in row:
            console.print(row)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    OUTPUT.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2))
    print(OUTPUT.resolve())


def _number(row: dict[str, Any], name: str, form: str) -> str:
    return format(row[name], form) if name in row else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"{', '.join(BENCHMARKS)}, or {SOAK} alone")
    parser.add_argument("--seeds", type=int, default=chaos.NUM_SEEDS, help="of the soak")
    arguments = parser.parse_args()
    main(arguments.names, arguments.seeds)
