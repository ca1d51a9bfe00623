"""Half precision: what is trained moves, and advice names the field that was set."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from prefsweep.sweeps.errors import TrialError
from prefsweep.sweeps.spec import LoraSpec
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_policy, load_tokenizer, load_trained
from prefsweep.workers.precision import hold_master_weights, precision
from prefsweep.workers.reference import reference_pairs
from prefsweep.workers.train import Hooks, train

from .architectures import saved, tiny
from .preference_data import preference_pairs
from .training_runs import SPEC, run, trial, weights

STEPS = SPEC.model_copy(update={"max_steps": 2})
SMALL = 1e-6
"""A learning rate of DPO at which bfloat16 rounds nearly all steps away."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return saved(tiny("llama"), tmp_path_factory.mktemp("half") / "model")


def held_in(source: ModelSource, dtype: str) -> ModelSource:
    return ModelSource(path=source.path, dtype=dtype)


def moved(source: ModelSource, folder: Path) -> float:
    """Share of the trained numbers that are not those of the policy."""
    before = {k: v.float() for k, v in load_policy(source).state_dict().items()}
    after = weights(folder)
    changed = sum(int((after[name] != before[name]).sum()) for name in after)
    return changed / sum(value.numel() for value in after.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_small_steps_move_as_many_weights_as_in_float32(
    source: ModelSource, tmp_path: Path, dtype: str
) -> None:
    shares = []
    for held in ("float32", dtype):
        policy = held_in(source, held)
        run(policy, trial(learning_rate=SMALL), STEPS, tmp_path / held)
        shares.append(moved(policy, tmp_path / held))
    # of the embedding's rows only those of tokens that occur have a gradient
    assert shares[1] > 0.9 * shares[0] > 0.05


@pytest.mark.parametrize("bf16", [True, False])
def test_what_was_trained_is_what_is_evaluated(
    source: ModelSource, tmp_path: Path, bf16: bool
) -> None:
    """The trained weights are loaded in float32, not rounded to the policy's data type."""
    policy = held_in(source, "bfloat16")
    run(policy, trial(learning_rate=SMALL), STEPS.model_copy(update={"bf16": bf16}), tmp_path)
    loaded = load_trained(policy, tmp_path / "weights").state_dict()
    saved_weights = weights(tmp_path)
    assert all(torch.equal(loaded[name], saved_weights[name]) for name in saved_weights)
    assert {value.dtype for value in saved_weights.values()} == {torch.float32}


def test_adapters_on_a_bfloat16_base_move_too(source: ModelSource, tmp_path: Path) -> None:
    spec = STEPS.model_copy(update={"lora": LoraSpec(r=2)})
    run(held_in(source, "bfloat16"), trial(learning_rate=SMALL), spec, tmp_path)
    adapter = weights(tmp_path)
    assert {value.dtype for value in adapter.values()} == {torch.float32}
    assert all(value.any() for name, value in adapter.items() if "lora_B" in name)


@pytest.mark.parametrize(
    ("dtype", "fields", "named"),
    [
        ("float32", {"fp16": True}, "training.bf16 instead of training.fp16"),
        ("float16", {}, "policy.dtype=bfloat16 instead of float16"),
        ("float16", {"lora": LoraSpec(r=2)}, "policy.dtype=bfloat16 instead of float16"),
        ("float32", {"bf16": True}, "lower the learning rate or raise beta"),
        ("bfloat16", {}, "lower the learning rate or raise beta"),
    ],
)
def test_advice_names_the_field_that_was_set(
    source: ModelSource, dtype: str, fields: dict[str, Any], named: str
) -> None:
    found = precision(STEPS.model_copy(update=fields), load_policy(held_in(source, dtype)))
    assert found.remedy.endswith(named)
    assert ("fp16" in found.remedy) == bool(fields.get("fp16"))


def test_bfloat16_is_computed_in_bfloat16_unless_a_field_says_otherwise(
    source: ModelSource,
) -> None:
    half, full = load_policy(held_in(source, "bfloat16")), load_policy(source)
    assert precision(STEPS, half).bf16
    assert not precision(STEPS, full).bf16
    assert not precision(STEPS.model_copy(update={"fp16": True}), half).bf16


def test_a_loss_that_is_not_finite_blames_no_field_that_was_not_set(
    source: ModelSource, tmp_path: Path
) -> None:
    with pytest.raises(TrialError, match=r"at step \d+; lower the learning rate or raise beta$"):
        run(source, trial(learning_rate=1e30), STEPS, tmp_path)


@pytest.mark.parametrize("lora", [None, LoraSpec(r=2)], ids=["full", "lora"])
@pytest.mark.parametrize("held", ["float32", "bfloat16"])
def test_a_policy_that_has_not_moved_has_log_ratios_of_0_in_bfloat16_too(
    source: ModelSource, tmp_path: Path, lora: LoraSpec | None, held: str
) -> None:
    """The reference is computed as the policy is trained; in fp32 it is off by rounding."""
    spec = STEPS.model_copy(update={"bf16": True, "lora": lora, "per_device_train_batch_size": 8})
    gaps = []
    for half in (spec.autocast(held), None):
        model = load_policy(held_in(source, held))
        hold_master_weights(spec, model)
        if half is None:
            model.float()
        tokenizer = load_tokenizer(source)
        pairs = reference_pairs(preference_pairs(), model, tokenizer, spec, half=half)
        records: list[dict[str, float]] = []
        policy = load_policy(held_in(source, held))
        folder = tmp_path / str(half)
        train(trial(beta=1.0), spec, policy, tokenizer, pairs, folder, Hooks(records.append))
        gaps.append(abs(records[0]["loss"] - math.log(2)))
    assert gaps[0] < 1e-5 and gaps[1] > 50 * gaps[0]
