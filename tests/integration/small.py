"""A sweep of built-in models with random weights, small enough for a test: a few seconds in all."""

import shutil
from pathlib import Path

from prefsweep.orchestrator.execution.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.state.sweep import Sweep, resolve
from prefsweep.sweeps.load import load_spec

OVERRIDES = [
    "name=small",
    "policy.sft=null",
    "reward.train=null",
    "prompts.num_train=12",
    "prompts.num_eval=4",
    "generation.shard_size=3",
    "generation.max_new_tokens=8",
    "evaluation.max_new_tokens=8",
    "evaluation.num_samples=1",
    "training.max_steps=4",
    "training.logging_steps=2",
    "training.per_device_train_batch_size=4",
    "grid=[{loss_type: [sigmoid, hinge], beta: [0.1], learning_rate: 1e-3}]",
    "tracking.wandb.mode=disabled",
]


def small_sweep(storage: Path, *overrides: str) -> Sweep:
    """The small sweep in a store of its own."""
    return resolve(load_spec("quickstart", [*OVERRIDES, *overrides]), str(storage))


def run_inline(sweep: Sweep, until: str = "report") -> None:
    """Run the sweep in this process."""
    run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources), until=until)


def with_artifacts_of(finished: Sweep, storage: Path, *overrides: str) -> Sweep:
    """The small sweep in a new store that has another one's artefacts, and none of its trials."""
    shutil.copytree(finished.storage, storage, ignore=shutil.ignore_patterns("sweeps", "trials"))
    return small_sweep(storage, *overrides)


def content(sweep: Sweep, stage: str) -> dict[str, bytes]:
    """The artefact of a stage, file by file, without its manifest."""
    folder = sweep.store.fetch(sweep.path(stage))
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.parquet"))}


def weights(sweep: Sweep) -> dict[str, bytes]:
    """The trained weights of every trial."""
    return {
        trial.name: (
            sweep.store.fetch(sweep.store.trial(trial.trial_id, "weights")) / "model.safetensors"
        ).read_bytes()
        for trial in sweep.trials
    }


def table(sweep: Sweep) -> list[list[str]]:
    """The report's trials.csv without the columns that tell time."""
    import csv
    import io

    data = sweep.store.read(sweep.store.sweep(sweep.spec.name, "report", "trials.csv"))
    assert data is not None
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    return [[value for key, value in row.items() if key != "train_seconds"] for row in rows]
