"""Half precision in training: float32 master weights, autocast, and advice on what to change.

bfloat16 has 8 bits of mantissa. With learning rates that are usual for DPO, an update is smaller
than half the distance to the next number and would be lost by rounding. Trained weights are
therefore float32, and autocast computes in `policy.dtype`. LoRA needs no copy: peft's adapters are
float32.
"""

from dataclasses import dataclass

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
    by_field, trains_all = spec.bf16 or spec.fp16, spec.lora is None
    loaded = {parameter.dtype for parameter in model.parameters()}
    bf16 = not by_field and trains_all and torch.bfloat16 in loaded
    fp16 = not by_field and torch.float16 in loaded and torch.cuda.is_available()
    remedy = "lower the learning rate or raise beta"
    if spec.fp16:
        remedy += ", or set training.bf16 instead of training.fp16"
    elif torch.float16 in loaded:
        remedy += ", or set policy.dtype=bfloat16 instead of float16"
    return Precision(spec.bf16 or bf16, spec.fp16 or fp16, remedy)


def hold_master_weights(spec: TrainingSpec, model: PreTrainedModel) -> None:
    """Convert the model to float32 if its weights are trained (without LoRA)."""
    if spec.lora is None:
        model.float()
