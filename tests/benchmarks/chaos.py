"""A soak: a small sweep on Ray whose driver and workers are killed at random until it is done.

Every few seconds a random process of the run is killed with SIGKILL: a worker, the driver, or the
raylet, and with it the node. Where that ends the driver, or makes it give up a stage or a trial
whose workers died too often, the same command is started again. A seed decides when and whom, as
far as the machine lets it. In the end weights and table must be those of an undisturbed run, and
nothing half-published may be left.
"""

import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from prefsweep.orchestrator.execution.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.state.sweep import Sweep
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
SHARES = {"worker": 0.6, "driver": 0.3, "node": 0.1}
"""Of the kills. A worker is waited for; a driver without its only node has to see that and end."""


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
    kills, kind = dict.fromkeys(SHARES, 0), _kind(choose)
    num_starts, attempt = 1, Run(storage, *words())
    next_kill_s = started_s + choose.uniform(*PAUSE_S)
    try:
        while (code := attempt.process.poll()) is None or code < 0 or _gave_up(attempt):
            if time.monotonic() - started_s > MAX_SECONDS:
                raise AssertionError(f"seed {seed} is not done after {MAX_SECONDS:.0f} s: {kills}")
            if code is not None:
                attempt.clean_up()
                num_starts, attempt = num_starts + 1, Run(storage, *words())
            elif (
                sum(kills.values()) < MAX_KILLS
                and time.monotonic() >= next_kill_s
                and _kill(attempt, kind, choose)
            ):
                kills[kind], kind = kills[kind] + 1, _kind(choose)
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
        "node kills": kills["node"],
        "starts": num_starts,
        "ours_s": time.monotonic() - started_s,
        "same table and weights": True,
    }


def _kind(choose: random.Random) -> str:
    """Whom the next kill hits."""
    return choose.choices(list(SHARES), list(SHARES.values()))[0]


def _kill(attempt: Run, kind: str, choose: random.Random) -> bool:
    """Kill the driver, its node or one of its busy Ray workers; False if none is there yet."""
    match kind:
        case "driver":
            victims = [psutil.Process(attempt.process.pid)]
        case "node":
            victims = attempt.children("raylet/raylet")
        case _:
            victims = [child for child in attempt.children("ray::") if _is_busy(child)]
    if not victims:
        return False
    with suppress(psutil.NoSuchProcess):  # it may just have ended by itself
        choose.choice(sorted(victims, key=lambda victim: victim.pid)).kill()
    return True


def _gave_up(attempt: Run) -> bool:
    """Told by us, or by Ray where that ends the process first."""
    texts = (
        "Ray has had no node for",
        "The current node timed out during startup",
        "Raylet is terminated",
        "the task killed 3 workers",
        "trials have not succeeded",
    )
    return attempt.process.returncode == 1 and any(text in attempt.output for text in texts)


def _is_busy(worker: psutil.Process) -> bool:
    """Whether it works for us; agents are part of the node."""
    name = " ".join(_words(worker))
    return "IDLE" not in name and "Agent" not in name


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
