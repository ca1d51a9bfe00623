"""LoRA adapters: peft's configuration for a LoRA section, and a check that it fits the model.

The check builds the model on torch's meta device, so it neither allocates nor loads weights.
"""

import difflib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prefsweep.sweeps.errors import ModelError, SpecError
from prefsweep.sweeps.inert import require_dropout_that_is_on
from prefsweep.sweeps.spec import LoraSpec, TrainingSpec
from prefsweep.workers.locations import ModelSource

TARGETS = "training.lora.target_modules"


def lora_config(spec: LoraSpec, model: PreTrainedModel) -> LoraConfig:
    """peft's configuration for a LoRA section and `model`, whose linear layers may be Conv1D."""
    modules = spec.target_modules
    return LoraConfig(
        r=spec.r,
        lora_alpha=spec.lora_alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=spec.lora_dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )


def check_adapters(spec: TrainingSpec, source: ModelSource) -> None:
    """Raise SpecError if `training.lora` does not fit the policy at `source`."""
    config = AutoConfig.from_pretrained(
        source.path,
        revision=source.revision or "main",
        trust_remote_code=source.trust_remote_code,
        **({} if source.gguf_file is None else {"gguf_file": source.gguf_file}),
    )
    check_adapters_of(spec, config, trust_remote_code=source.trust_remote_code)


def check_adapters_of(
    spec: TrainingSpec, config: PretrainedConfig, *, trust_remote_code: bool = False
) -> None:
    """As `check_adapters`, for a model with this config."""
    assert spec.lora is not None
    require_dropout_that_is_on(spec)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    if not isinstance(spec.lora.target_modules, str):
        _check_targets(spec.lora.target_modules, model)
    try:
        with warnings.catch_warnings(action="ignore"):  # training shows them again
            get_peft_model(model, lora_config(spec.lora, model))
    except (ValueError, TypeError, NotImplementedError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        named = _shown(spec.lora.target_modules)
        raise ModelError(f"{TARGETS}={named}: peft refuses it for this model: {said}") from error


def _check_targets(targets: Sequence[str], model: Any) -> None:
    """Raise if a target is not the end of a layer's name, or is the output layer."""
    kind = type(model).__name__
    modules = {name: m for name, m in model.named_modules() if hasattr(m, "weight")}
    matches = {
        target: [name for name in modules if name == target or name.endswith(f".{target}")]
        for target in targets
    }
    output = model.get_output_embeddings()
    layers = {
        name.rpartition(".")[2]: None
        for name, module in modules.items()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not output
    }
    known = ", ".join(layers)
    for target, names in matches.items():
        if any(modules[name] is output for name in names):
            raise SpecError(
                f"{TARGETS}: {target} is the output layer of {kind}, and TRL computes "
                f"log-probabilities from its weights without the adapter; remove it. The linear "
                f"layers are {known}"
            )
    missing = [target for target, names in matches.items() if not names]
    if missing:
        near = [name for t in missing for name in difflib.get_close_matches(t, layers, 2, 0.5)]
        nearest = f"; the nearest are {', '.join(dict.fromkeys(near))}" if near else ""
        raise SpecError(
            f"{TARGETS}={_shown(targets)}: {kind} has no layer called {' or '.join(missing)}"
            f"{nearest}. Its linear layers are {known}; use some of these, or all-linear"
        )


def _shown(targets: Sequence[str] | str) -> str:
    return targets if isinstance(targets, str) else f"[{', '.join(targets)}]"
