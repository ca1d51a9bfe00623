"""A tiny policy and classifier with random weights, written once for all worker tests."""

from pathlib import Path

import pytest
import torch

from prefsweep.workers.builtin import write_base_model
from prefsweep.workers.locations import ModelSource


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def policy_source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder: Path = tmp_path_factory.mktemp("models") / "policy"
    write_base_model("tiny-gpt2", folder, 0)
    return ModelSource(path=str(folder))


@pytest.fixture(scope="session")
def classifier_source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder: Path = tmp_path_factory.mktemp("models") / "classifier"
    write_base_model("tiny-classifier", folder, 0)
    return ModelSource(path=str(folder))
