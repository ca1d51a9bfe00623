"""Adapters and reward functions that cannot work: one message with what there is, no traceback."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from prefsweep.sweeps.errors import DataError, ModelError, SpecError, UsageError
from prefsweep.sweeps.spec import CallableReward, LoraSpec, PolicySpec, TrainingSpec
from prefsweep.workers.adapters import check_adapters_of
from prefsweep.workers.functions import load_function
from prefsweep.workers.locations import model_identity
from prefsweep.workers.score import CallableScorer

from .architectures import ARCHITECTURES, saved, tiny
from .training_runs import SPEC, run, trial, weights

GPT2 = {"n_embd": 16, "n_head": 2, "n_layer": 1, "vocab_size": 32}


# --- adapters ------------------------------------------------------------------------------------


def check(model: str, *targets: str, **fields: Any) -> None:
    config = AutoConfig.for_model(model, **(GPT2 if model == "gpt2" else ARCHITECTURES[model]))
    lora = LoraSpec(target_modules=targets or "all-linear", **fields)
    check_adapters_of(TrainingSpec(lora=lora), config)


@pytest.mark.parametrize(
    ("model", "targets", "said"),
    [
        ("gpt2", ["q_proj", "v_proj"], r"no layer called q_proj or v_proj.*c_attn, c_proj, c_fc"),
        ("llama", ["c_attn"], r"no layer called c_attn.*q_proj, k_proj, v_proj, o_proj"),
        ("llama", ["q_proj", "vproj"], r"no layer called vproj; the nearest are v_proj"),
        ("bloom", ["query_key_values"], r"the nearest are query_key_value"),
        ("gpt2", ["attn"], r"no layer called attn; the nearest are c_attn"),
        ("gpt2", ["ln_1"], r"target_modules=\[ln_1\]: peft refuses it.*not supported"),
        ("llama", ["q_proj", "lm_head"], r"lm_head is the output layer"),
        ("mixtral", ["w1"], r"no layer called w1"),
    ],
)
def test_targets_that_match_nothing_are_told_with_those_there_are(
    model: str, targets: list[str], said: str
) -> None:
    with pytest.raises((SpecError, ModelError), match=said) as told:
        check(model, *targets)
    assert str(told.value).startswith("training.lora.target_modules")


@pytest.mark.parametrize("model", ["gpt2", "llama", "bloom", "falcon", "opt", "phi3", "mixtral"])
def test_targets_that_are_there_are_accepted(model: str) -> None:
    check(model)
    names = {"gpt2": "c_attn", "bloom": "query_key_value", "falcon": "query_key_value"}
    check(model, names.get(model, "qkv_proj" if model == "phi3" else "q_proj"))


def test_dropout_of_an_adapter_that_would_not_be_applied_is_refused() -> None:
    with pytest.raises(SpecError, match=r"lora_dropout=0.1 has no effect.*disable_dropout=false"):
        check("llama", lora_dropout=0.1)


def write_adapter(folder: Path, base: str = "someone/base") -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{base}"}}')
    return folder


@pytest.mark.parametrize("has_a_config", [False, True])
def test_an_adapter_is_no_policy(tmp_path: Path, has_a_config: bool) -> None:
    """With a config beside it, transformers would load the base and not what was hashed."""
    folder = write_adapter(tmp_path / "adapter")
    if has_a_config:
        (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"a LoRA adapter of someone/base.*Merge it"):
        model_identity(PolicySpec(model=str(folder)), "policy.model")


def test_a_damaged_adapter_is_still_called_one(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    (folder / "adapter_config.json").write_text("[")
    with pytest.raises(ModelError, match="a LoRA adapter, not a model"):
        model_identity(PolicySpec(model=str(folder)), "policy.model")


def test_an_adapter_in_the_hubs_cache_is_no_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = write_adapter(tmp_path / "adapter") / "adapter_config.json"

    def cached(model: str, name: str, revision: str | None = None) -> str | None:
        return str(adapter) if name == adapter.name else None

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("prefsweep.workers.locations.try_to_load_from_cache", cached)
    with pytest.raises(ModelError, match=r"policy.model=me/sft: this is a LoRA adapter"):
        model_identity(PolicySpec(model="me/sft"), "policy.model")


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_gradient_checkpointing_changes_no_adapter(tmp_path: Path, packing: Any) -> None:
    source, adapters, losses = saved(tiny("llama"), tmp_path / "model"), [], []
    for recomputes in (False, True):
        fields = {"gradient_checkpointing": recomputes, "packing": packing, "lora": LoraSpec(r=2)}
        spec = SPEC.model_copy(update={"max_steps": 2, **fields})
        losses.append(run(source, trial(), spec, tmp_path / str(recomputes)))
        adapters.append(weights(tmp_path / str(recomputes)))
    assert losses[0] == losses[1]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    assert all(value.any() for name, value in adapters[1].items() if "lora_B" in name)


# --- reward functions ----------------------------------------------------------------------------


def gives(value: Any) -> Callable[[Any, Any], Any]:
    return lambda prompts, completions: value(completions)


async def waits(prompts: Any, completions: Any) -> list[float]:
    return [0.0 for _ in completions]


class Waits:
    async def __call__(self, prompts: Any, completions: Any) -> list[float]:
        return []


def raises(prompts: Any, completions: Any) -> Any:
    raise KeyError("judge")


def leaves(prompts: Any, completions: Any) -> Any:
    sys.exit(3)


def breaks_off(prompts: Any, completions: Any) -> Any:
    yield 1.0
    raise ValueError("no more")


def takes_one(pairs: Any) -> list[float]:
    return []


BAD: dict[str, tuple[Any, str]] = {
    "none": (gives(lambda c: None), "returned None; it must return a list of 2 numbers"),
    "dict": (gives(lambda c: dict.fromkeys(range(len(c)), 1.0)), "returned a dict"),
    "set": (gives(lambda c: {0.5, 0.7}), "returned a set"),
    "text": (gives(lambda c: "12"), "returned a str"),
    "number": (gives(lambda c: 0.5), "returned a float"),
    "no_list": (gives(lambda c: np.float64(1)), "returned a float64"),
    "coroutine": (gives(lambda c: waits(c, c)), "returned a coroutine"),
    "short": (gives(lambda c: [1.0]), "returned 1 scores"),
    "long": (gives(lambda c: [1.0] * 3), "returned 3 scores"),
    "holes": (gives(lambda c: [1.0, None]), "returned None as score 2"),
    "words": (gives(lambda c: ["0.5", "good"]), "returned '0.5' as score 1"),
    "rows": (gives(lambda c: [[0.1, 0.2], [0.3, 0.4]]), r"returned \[0.1, 0.2\] as score 1"),
    "raises": (raises, r"raised KeyError: 'judge' \(.*test_found_before_work.py, line \d+\)"),
    "leaves": (leaves, "raised SystemExit: 3"),
    "breaks_off": (breaks_off, "raised ValueError: no more"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reward_is_one_message_with_function_and_prompt(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    function, said = BAD[name]
    monkeypatch.setitem(sys.modules[__name__].__dict__, "judge", function)
    scorer = CallableScorer(CallableReward(type="callable", function=f"{__name__}:judge"))
    with pytest.raises(DataError, match=said) as told:
        scorer.score(["The film", "A friend"], [" is good", " agrees"])
    assert f"reward.function={__name__}:judge" in str(told.value)
    assert "the first for the prompt 'The film'" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "value",
    [
        lambda c: [1, 0.5],
        lambda c: (1.0, 0.5),
        lambda c: np.array([1.0, 0.5], dtype=np.float32),
        lambda c: torch.tensor([1.0, 0.5]),
        lambda c: (score for score in (1.0, 0.5)),
        lambda c: [torch.tensor(1.0), np.float64(0.5)],
    ],
)
def test_any_sequence_of_numbers_is_a_reward(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    monkeypatch.setitem(sys.modules[__name__].__dict__, "judge", gives(value))
    scorer = CallableScorer(CallableReward(type="callable", function=f"{__name__}:judge"))
    assert scorer.score(["a", "b"], ["c", "d"]) == [1.0, 0.5]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (waits, "async def"),
        (Waits(), "async def"),
        (takes_one, r"cannot be called as f\(prompts, completions\): too many positional"),
        (lambda prompts, completions, key: [], "missing a required argument: 'key'"),
        (3, "is a int, not a function"),
    ],
)
def test_what_a_function_tells_of_itself_is_known_before_any_work(
    monkeypatch: pytest.MonkeyPatch, function: Any, said: str
) -> None:
    monkeypatch.setitem(sys.modules[__name__].__dict__, "judge", function)
    with pytest.raises(UsageError, match=said):
        load_function(f"{__name__}:judge")


def test_a_function_may_wait_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules[__name__].__dict__, "judge", lambda p, c: asyncio.run(waits(p, c))
    )
    scorer = CallableScorer(CallableReward(type="callable", function=f"{__name__}:judge"))
    assert scorer.score(["a", "b"], ["c", "d"]) == [0.0, 0.0]
