"""Half precision in training: float32 master weights, autocast, and advice on what to change.

bfloat16 has 8 bits of mantissa. With learning rates that are usual for DPO, an update is smaller
than half the distance to the next number and would be lost by rounding. Trained weights are
therefore float32, and autocast computes in `policy.dtype`. LoRA needs no copy: peft's adapters are
float32.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from prefsweep.sweeps.spec import TrainingSpec


@dataclass(frozen=True)
class Precision:
    """The precision of a trial's arithmetic."""

    bf16: bool
    """Autocast to bfloat16."""
    fp16: bool
    """Autocast to float16, with loss scaling."""
    remedy: str
    """What to change if values are not finite; names the field that enabled float16."""


def precision(spec: TrainingSpec, model: PreTrainedModel) -> Precision:
    """The precision for training `model`, as loaded.

    Call this before `hold_master_weights`. float16 needs loss scaling, which torch only supports
    on CUDA.
    """
    loaded = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    held = next((name for name in ("float16", "bfloat16") if name in loaded), "float32")
    half = spec.autocast(held)
    fp16 = half == "float16" and (spec.fp16 or torch.cuda.is_available())
    remedy = "lower the learning rate or raise beta"
    if spec.fp16:
        remedy += ", or set training.bf16 instead of training.fp16"
    elif held == "float16":
        remedy += ", or set policy.dtype=bfloat16 instead of float16"
    return Precision(half == "bfloat16", fp16, remedy)


def autocast(half: str | None, device: torch.device) -> AbstractContextManager[Any]:
    """The arithmetic of a training under that autocast (`TrainingSpec.autocast`) on a device."""
    if half is None or (half == "float16" and device.type != "cuda"):
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, half))


def hold_master_weights(spec: TrainingSpec, model: PreTrainedModel) -> None:
    """Convert the model to float32 if its weights are trained (without LoRA)."""
    if spec.lora is None:
        model.float()
