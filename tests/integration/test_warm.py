"""Trials that share a worker end as they would in processes of their own, bit for bit."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prefsweep.orchestrator.execution.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.sweeps.records import Status

from .small import small_sweep

# the first trial fails (its updates overflow), the others follow it in the same worker
GRID = (
    "grid=[{beta: [0.1], learning_rate: 1e30}, "
    "{loss_type: [sigmoid, hinge], beta: [0.2], learning_rate: 1e-3}]"
)
LORA = "training.lora={r: 2, lora_alpha: 4, target_modules: [c_attn, c_proj]}"
ALONE = """
import sys
from pathlib import Path
from prefsweep.orchestrator.tasks.worker import set_up_worker
from prefsweep.orchestrator.tasks.cache import Kept
from prefsweep.orchestrator.tasks.attempts import run_trial
from tests.integration.small import small_sweep

set_up_worker(1)
sweep = small_sweep(Path(sys.argv[1]), *sys.argv[3:])
trial = next(t for t in sweep.trials if t.name == sys.argv[2])
run_trial(Kept(sweep), trial)
"""


def outcome(sweep: Sweep, name: str) -> dict[str, bytes]:
    """The trial's weights and evaluation, file by file, without manifests."""
    trial = next(t for t in sweep.trials if t.name == name)
    folders = [
        sweep.store.fetch(sweep.store.trial(trial.trial_id, "weights")),
        sweep.store.fetch(sweep.evaluation_path(trial.trial_id)),
    ]
    names = ("*.safetensors", "metrics.json", "samples.parquet")
    files = [file for folder in folders for name in names for file in sorted(folder.glob(name))]
    assert len(files) == 3
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("overrides", [[], [LORA]], ids=["full", "lora"])
def test_a_trial_after_others_is_what_it_is_alone(tmp_path: Path, overrides: list[str]) -> None:
    overrides = [GRID, *overrides, "evaluation.eval_steps=2"]
    together = small_sweep(tmp_path / "together", *overrides)
    run_sweep(together, lambda: InlineCluster(together.spec.resources), until="untrained")
    shutil.copytree(tmp_path / "together", tmp_path / "alone")
    results = run_sweep(together, lambda: InlineCluster(together.spec.resources))
    statuses = [result.status for result in results]
    assert statuses == [Status.SUCCEEDED, Status.FAILED, Status.SUCCEEDED, Status.SUCCEEDED]
    arguments = [str(tmp_path / "alone"), "hinge-beta0.2", *overrides]
    subprocess.run([sys.executable, "-c", ALONE, *arguments], check=True)
    alone = small_sweep(tmp_path / "alone", *overrides)
    assert outcome(together, "hinge-beta0.2") == outcome(alone, "hinge-beta0.2")
