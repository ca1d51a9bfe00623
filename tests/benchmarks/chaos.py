"""A soak: a small sweep on Ray whose driver and workers are killed at random until it is done.

Every few seconds a random process of the run is killed with SIGKILL; a killed driver is started
again with the same command. A seed decides when and whom, as far as the machine lets it. In the end
weights and table must be those of an undisturbed run, and nothing half-published may be left.
"""

import random
import time
from pathlib import Path
from typing import Any

import psutil

from prefsweep.orchestrator.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.sweep import Sweep
from tests.integration.faults.harness import (
    Run,
    assert_results,
    assert_whole,
    sweep_in,
    words,
)

NUM_SEEDS = 10
MAX_KILLS = 12
"""Of one seed; afterwards the run is left alone, so that it ends."""
MAX_SECONDS = 900.0
"""Of one seed."""
PAUSE_S = (0.5, 6.0)
"""Between two kills."""
DRIVER_SHARE = 0.3
"""Of the kills that hit the driver, where there is a worker to hit as well."""


def run(folder: Path, num_seeds: int = NUM_SEEDS, first_seed: int = 0) -> list[dict[str, Any]]:
    """One row for every seed; raises AssertionError at the first whose result is another."""
    undisturbed = sweep_in(folder / "undisturbed")
    run_sweep(undisturbed, lambda: InlineCluster(undisturbed.spec.resources))
    rows: list[dict[str, Any]] = []
    for seed in range(first_seed, first_seed + num_seeds):
        rows.append(soak(folder / f"seed-{seed}", seed, undisturbed))
        print(rows[-1], flush=True)
    return rows


def soak(storage: Path, seed: int, undisturbed: Sweep) -> dict[str, Any]:
    """Run one sweep to its end under fire."""
    choose, started_s = random.Random(seed), time.monotonic()
    kills = {"driver": 0, "worker": 0}
    num_starts, attempt = 1, Run(storage, *words())
    next_kill_s = started_s + choose.uniform(*PAUSE_S)
    try:
        while (code := attempt.process.poll()) is None or code < 0:
            if time.monotonic() - started_s > MAX_SECONDS:
                raise AssertionError(f"seed {seed} is not done after {MAX_SECONDS:.0f} s: {kills}")
            if code is not None:
                attempt.clean_up()
                num_starts, attempt = num_starts + 1, Run(storage, *words())
            elif time.monotonic() >= next_kill_s and sum(kills.values()) < MAX_KILLS:
                kills[_kill_one(attempt, choose)] += 1
                next_kill_s = time.monotonic() + choose.uniform(*PAUSE_S)
            time.sleep(0.05)
        assert code == 0, f"seed {seed} ended with {code}: {attempt.output}"
    finally:
        attempt.clean_up()
    assert_whole(storage)
    assert_results(storage, undisturbed)
    return {
        "benchmark": f"chaos, seed {seed}",
        "driver kills": kills["driver"],
        "worker kills": kills["worker"],
        "starts": num_starts,
        "ours_s": time.monotonic() - started_s,
        "same table and weights": True,
    }


def _kill_one(attempt: Run, choose: random.Random) -> str:
    """Kill the driver or one of its busy Ray workers; returns which of both."""
    busy = [child for child in attempt.children("ray::") if "IDLE" not in " ".join(_words(child))]
    if busy and choose.random() >= DRIVER_SHARE:
        victim, kind = choose.choice(sorted(busy, key=lambda child: child.pid)), "worker"
    else:
        victim, kind = psutil.Process(attempt.process.pid), "driver"
    try:
        victim.kill()
    except psutil.NoSuchProcess:  # it has just ended by itself
        return kind
    return kind


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
