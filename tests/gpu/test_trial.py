"""A trial on the GPU: the losses of the CPU, packed in fp32 and bf16, and one seed, one result."""

from pathlib import Path

import pytest
import torch

from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.records import Prompt, prompt_id
from prefsweep.sweeps.spec import GenerationSpec, LoraSpec, TrainingSpec
from prefsweep.workers.builtin import write_base_model
from prefsweep.workers.fused import train_group
from prefsweep.workers.generate import Generator
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_policy, load_tokenizer
from prefsweep.workers.train import Hooks, train
from tests.unit.workers.preference_data import tokenized_pairs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

TRIAL = TrialSpec(loss_type="sigmoid", beta=0.1, learning_rate=2e-4)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("models") / "policy"
    write_base_model("tiny-gpt2", folder, 0)
    return ModelSource(path=str(folder))


def losses(source: ModelSource, folder: Path, **spec: object) -> list[float]:
    section = TrainingSpec.model_validate(
        {"max_steps": 4, "per_device_train_batch_size": 2, "logging_steps": 1, **spec}
    )
    records: list[dict[str, float]] = []
    pairs = tokenized_pairs(source)
    hooks = Hooks(report=records.append)
    notes = train(TRIAL, section, load_policy(source), load_tokenizer(source), pairs, folder, hooks)
    assert notes["gpu_memory_gib"] > 0
    return [record["loss"] for record in records]


@pytest.mark.parametrize("lora", [None, LoraSpec(r=4)], ids=["full", "lora"])
def test_packed_losses_are_the_padded_ones(
    source: ModelSource, tmp_path: Path, lora: LoraSpec | None
) -> None:
    padded = losses(source, tmp_path / "padded", lora=lora, packing="off")
    assert losses(source, tmp_path / "packed", lora=lora) == pytest.approx(padded, rel=1e-4)


def test_bf16_losses_are_near_the_fp32_ones(source: ModelSource, tmp_path: Path) -> None:
    full = losses(source, tmp_path / "fp32")
    assert losses(source, tmp_path / "bf16", bf16=True) == pytest.approx(full, rel=0.05)


def test_trials_of_a_group_have_the_losses_of_trials_alone(
    source: ModelSource, tmp_path: Path
) -> None:
    section = TrainingSpec(
        max_steps=4, per_device_train_batch_size=2, logging_steps=1, lora=LoraSpec(r=4)
    )
    trials = [TRIAL, TRIAL.model_copy(update={"loss_type": "hinge", "beta": 0.5})]
    records: list[list[dict[str, float]]] = [[], []]
    hooks = [Hooks(report=own.append) for own in records]
    models = (load_policy(source), load_tokenizer(source))
    folders = [tmp_path / "0", tmp_path / "1"]
    train_group(trials, section, *models, tokenized_pairs(source), folders, hooks)
    alone = losses(source, tmp_path / "alone", lora=LoraSpec(r=4), packing="off")
    assert [record["loss"] for record in records[0]] == pytest.approx(alone, rel=1e-4)
    assert all(record["loss"] > 0 for record in records[1])


def test_the_same_seed_gives_the_same_completions(source: ModelSource) -> None:
    prompts = [Prompt(prompt_id(text), text) for text in ("I watched this film", "My brother")]
    spec = GenerationSpec(max_new_tokens=8)

    def complete() -> object:
        generator = Generator(load_policy(source), load_tokenizer(source), spec)
        return generator.complete(prompts, 3)

    assert complete() == complete()
