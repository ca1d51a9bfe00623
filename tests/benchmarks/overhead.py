"""What prefsweep itself costs: trials that do nothing, and commands on a finished sweep.

There is no baseline: the figures are seconds. Trials that do nothing run on Ray as all trials do,
with their records in the store; only `run_group` is replaced by one that marks success.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefsweep.orchestrator.execution import tuning
from prefsweep.orchestrator.execution.cluster import InlineCluster, RayCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.state.sweep import Sweep, Trial, resolve
from prefsweep.orchestrator.state.trial_record import write_status
from prefsweep.orchestrator.store.store import new_manifest
from prefsweep.orchestrator.tasks.attempts import WorkerSlot
from prefsweep.orchestrator.tasks.cache import WorkerCache
from prefsweep.orchestrator.tracking.watcher import TrialWatch
from prefsweep.sweeps.load import load_spec
from prefsweep.sweeps.records import Status

MANIFESTS = shutil.ignore_patterns("manifest.json")
NUM_IDLE, NUM_FINISHED, NUM_ROUNDS = 200, 1000, 3
SMALL = (
    "name=overhead",
    "policy.sft=null",
    "reward.train=null",
    "prompts.num_train=8",
    "prompts.num_eval=4",
    "generation.max_new_tokens=8",
    "evaluation.max_new_tokens=8",
    "training.max_steps=1",
    "tracking.wandb.mode=disabled",
)


def run(folder: Path) -> list[dict[str, Any]]:
    """Seconds for each trial that does nothing, of `plan` and of `run` of a finished sweep."""
    return [_idle_trials(folder / "idle"), *_finished_sweep(folder / "finished")]


def finish(cache: WorkerCache, trials: Sequence[Trial], slot: WorkerSlot) -> None:
    """Trials that do nothing."""
    for trial in trials:
        write_status(cache.sweep, trial, Status.SUCCEEDED)


def _sweep(storage: Path, num_trials: int) -> Sweep:
    betas = [round(0.01 * (i + 1), 2) for i in range(num_trials)]
    return resolve(load_spec("quickstart", list(_overrides(betas))), str(storage))


def _overrides(betas: list[float]) -> tuple[str, ...]:
    return (*SMALL, f"grid=[{{beta: {betas}, learning_rate: 1e-3}}]")


def _idle_trials(storage: Path) -> dict[str, Any]:
    """Few trials and many, on one Ray: the difference is what a trial costs."""
    tuning.run_group = finish
    sweep = _sweep(storage, NUM_IDLE)
    cluster = RayCluster(sweep.spec.resources)
    seconds: dict[int, float] = {}
    for num in (2, NUM_IDLE):
        trials = sweep.trials[:num]
        for trial in trials:
            write_status(sweep, trial, Status.PENDING)
        started = time.perf_counter()
        with TrialWatch(sweep, trials):
            cluster.run_trials(sweep, trials)
        seconds[num] = time.perf_counter() - started
    cluster.close()
    return {
        "benchmark": f"overhead of each of {NUM_IDLE} trials that do nothing",
        "ours_s": seconds[NUM_IDLE] / NUM_IDLE,
        "start-up of two trials, s": seconds[2],
    }


def _finished_sweep(storage: Path) -> list[dict[str, Any]]:
    """One trial is run, the others are given copies of what it left."""
    first = _sweep(storage, 1)
    run_sweep(first, lambda: InlineCluster(first.spec.resources), until="trials")
    sweep, store = _sweep(storage, NUM_FINISHED), first.store
    done = first.trials[0].trial_id
    weights = store.fetch(store.trial(done, "weights"))
    evaluation = store.fetch(first.evaluation_path(done))
    for trial in sweep.trials[1:]:
        with store.staging() as staging:
            for path, folder in (
                (store.trial(trial.trial_id, "weights"), weights),
                (sweep.evaluation_path(trial.trial_id), evaluation),
            ):
                copy = shutil.copytree(folder, staging / folder.name, ignore=MANIFESTS)
                store.publish(path, copy, new_manifest(trial.trial_id, 1, 0.0))
    command = str(Path(sys.executable).with_name("prefsweep"))
    betas = [trial.spec.beta for trial in sweep.trials]
    arguments = ["quickstart", *_overrides(betas), "--storage", str(storage)]
    subprocess.run([command, "run", *arguments], check=True, stdout=subprocess.DEVNULL)
    return [
        {
            "benchmark": f"`{name}` of a finished sweep of {NUM_FINISHED} trials",
            "ours_s": statistics.median(
                _timed([command, name, *arguments]) for _ in range(NUM_ROUNDS)
            ),
        }
        for name in ("plan", "run")
    ]


def _timed(command: list[str]) -> float:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started
