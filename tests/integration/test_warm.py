"""Trials that share a worker end as they would in processes of their own, bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prefsweep.orchestrator.execution.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.sweeps.records import Status

from .small import with_artifacts_of

# the first trial fails (its updates overflow), the others follow it in the same worker
GRID = (
    "grid=[{beta: [0.1], learning_rate: 1e30}, "
    "{loss_type: [sigmoid, hinge], beta: [0.2], learning_rate: 1e-3}]"
)
LORA = "training.lora={r: 2, lora_alpha: 4, target_modules: [c_attn, c_proj]}"
ALONE = """
import json, os, sys
from pathlib import Path
from prefsweep.orchestrator.tasks.worker import set_up_worker
from prefsweep.orchestrator.tasks.cache import WorkerCache
from prefsweep.orchestrator.tasks.attempts import run_trial
from tests.integration.small import small_sweep

set_up_worker(1)
for folder, overrides in json.loads(sys.argv[2]):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        continue
    sweep = small_sweep(Path(folder), *overrides)
    trial = next(t for t in sweep.trials if t.name == sys.argv[1])
    run_trial(WorkerCache(sweep), trial)
    os._exit(0)
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


KINDS = {"full": [GRID, "evaluation.eval_steps=2"], "lora": [GRID, LORA, "evaluation.eval_steps=2"]}
NAME = "hinge-beta0.2"


@pytest.fixture(scope="module")
def alone(finished_sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sweep]:
    """Sweeps of which one trial is done, each in a process in which nothing was done before."""
    folder = tmp_path_factory.mktemp("alone")
    sweeps = {
        kind: with_artifacts_of(finished_sweep, folder / kind, *overrides)
        for kind, overrides in KINDS.items()
    }
    arguments = [(str(folder / kind), overrides) for kind, overrides in KINDS.items()]
    subprocess.run([sys.executable, "-c", ALONE, NAME, json.dumps(arguments)], check=True)
    return sweeps


@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_after_others_is_what_it_is_alone(
    kind: str, finished_sweep: Sweep, alone: dict[str, Sweep], tmp_path: Path
) -> None:
    together = with_artifacts_of(finished_sweep, tmp_path / "together", *KINDS[kind])
    results = run_sweep(together, lambda: InlineCluster(together.spec.resources))
    statuses = [result.status for result in results]
    assert statuses == [Status.SUCCEEDED, Status.FAILED, Status.SUCCEEDED, Status.SUCCEEDED]
    assert outcome(together, NAME) == outcome(alone[kind], NAME)
