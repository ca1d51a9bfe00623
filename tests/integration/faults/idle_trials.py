"""A driver of its own for trials that have nothing left to do: prints by how much it grows, in MiB.

python -m tests.integration.faults.idle_trials STORAGE ADDRESS
"""

import sys
from pathlib import Path

import psutil

from prefsweep.orchestrator.execution.cluster import RayCluster, attach
from prefsweep.orchestrator.execution.tuning import tune_trials
from prefsweep.orchestrator.state.sweep import Sweep

from ..small import small_sweep

NUM_TRIALS, NUM_FIRST = 100, 30
"""The driver is measured after the first ones: then all that it needs is loaded."""


def idle_sweep(storage: Path) -> Sweep:
    """A sweep of so many trials."""
    betas = [round(0.01 * n, 2) for n in range(1, NUM_TRIALS + 1)]
    return small_sweep(storage, f"grid=[{{beta: {betas}, learning_rate: 1e-3}}]")


def main(storage: str, address: str) -> None:
    """Run them all."""
    sweep = idle_sweep(Path(storage))
    cluster = attach(sweep, address)
    assert isinstance(cluster, RayCluster)
    try:
        tune_trials(sweep, sweep.trials[:NUM_FIRST], 0.0)
        before = psutil.Process().memory_info().rss
        tune_trials(sweep, sweep.trials, 0.0)
        print((psutil.Process().memory_info().rss - before) / 2**20)
    finally:
        cluster.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
