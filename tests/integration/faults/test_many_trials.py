"""Many trials on three nodes: the driver's memory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from prefsweep.orchestrator.execution.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.state.sweep import Sweep, Trial
from prefsweep.orchestrator.store.store import new_manifest

from ..ray_cluster import AUTH, RayNodes
from . import idle_trials
from .harness import ROOT
from .idle_trials import NUM_TRIALS, idle_sweep


def test_many_trials_that_do_nothing_end_and_the_driver_does_not_grow(
    three_nodes: RayNodes, tmp_path: Path
) -> None:
    sweep = idle_sweep(tmp_path / "store")
    cluster = InlineCluster(sweep.spec.resources)
    run_sweep(sweep, lambda: cluster, until="untrained")
    cluster.run_trials(sweep, sweep.trials[:1])
    for trial in sweep.trials[1:]:
        copy_results(sweep, sweep.trials[0], trial)
    # a process of its own: Ray reads a token once, and tests before this one had none
    words = [sys.executable, "-m", idle_trials.__name__, sweep.storage, three_nodes.address]
    run = subprocess.run(
        words, cwd=ROOT, env=os.environ | AUTH, capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stdout + run.stderr
    grown_mib = float(run.stdout.splitlines()[-1])
    assert [ended(sweep, trial) for trial in sweep.trials] == ["succeeded"] * NUM_TRIALS
    print(f"{NUM_TRIALS} trials: the driver grew by {grown_mib:.0f} MiB")
    assert grown_mib < NUM_TRIALS / 2, "half a MiB for a trial that does nothing would be a leak"


def copy_results(sweep: Sweep, done: Trial, trial: Trial) -> None:
    """The weights and the evaluation of a finished trial as those of another one."""
    store = sweep.store
    for path, target in (
        (store.trial(done.trial_id, "weights"), store.trial(trial.trial_id, "weights")),
        (sweep.evaluation_path(done.trial_id), sweep.evaluation_path(trial.trial_id)),
    ):
        with store.staging() as staging:
            ignore = shutil.ignore_patterns("manifest.json")
            folder = shutil.copytree(store.fetch(path), staging / "copy", ignore=ignore)
            store.publish(target, folder, new_manifest(trial.trial_id, 1, 0.0))


def ended(sweep: Sweep, trial: Trial) -> str:
    return sweep.store.read_json(sweep.store.trial(trial.trial_id, "status.json"))["status"]
