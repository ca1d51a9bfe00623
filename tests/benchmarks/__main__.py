"""`make bench`: run the benchmarks, print a table and JSON."""

import json
import os
import platform
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from prefsweep.orchestrator.border import set_up_worker
from tests.benchmarks import trial


def main() -> None:
    """All benchmarks, on all cores of this machine."""
    set_up_worker(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        rows = trial.run(Path(folder))
    table = Table("benchmark", "baseline", "baseline s", "ours s", "ratio", "loss difference")
    for row in rows:
        table.add_row(
            row["benchmark"],
            row["baseline"],
            f"{row['baseline_s']:.2f}",
            f"{row['ours_s']:.2f}",
            f"{row['ratio']:.2f}x",
            f"{row['largest relative loss difference']:.1e}",
        )
    Console(width=120).print(table)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    print(json.dumps({"machine": machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
