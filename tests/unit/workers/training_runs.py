"""A brief training for tests: its trial, its run and what it has written."""

from pathlib import Path
from typing import Any

import torch

from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.spec import TrainingSpec
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_policy, load_tokenizer
from prefsweep.workers.train import Hooks, train

from .preference_data import tokenized_pairs

SPEC = TrainingSpec(max_steps=4, per_device_train_batch_size=2, logging_steps=1)


def trial(**fields: Any) -> TrialSpec:
    return TrialSpec(**{"loss_type": "sigmoid", "beta": 0.1, "learning_rate": 1e-3, **fields})


def run(
    source: ModelSource, grid_point: TrialSpec, spec: TrainingSpec, folder: Path, **hooks: Any
) -> list[dict[str, float]]:
    records: list[dict[str, float]] = []
    train(
        grid_point,
        spec,
        load_policy(source),
        load_tokenizer(source),
        tokenized_pairs(source),
        folder / "weights",
        Hooks(report=records.append, **hooks),
    )
    return records


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(next((folder / "weights").glob("*.safetensors")))
