"""Which trials can be trained together (workers/fused.py), and why others cannot."""

from collections.abc import Sequence
from typing import TypeVar

from prefsweep.sweeps.grid import TrialSpec, split_loss
from prefsweep.sweeps.training import TrainingSpec

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "rmsprop", "sgd")
"""Names of the optimizers that step each trial by its own learning rate."""
ADAPTIVE_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
"""Schedules that read more than the number of the step."""
ROW_MIXING_LOSSES = frozenset({"aot", "aot_unpaired", "sft"})
"""Losses whose value over a batch is not the mean over its pairs: their batches are never cut."""

_Item = TypeVar("_Item")


def why_not_fused(training: TrainingSpec, dtype: str) -> str | None:
    """Why trials cannot be fused, on a policy of this type; None if they can."""
    lora = training.lora
    reasons = {
        "training.lora is not set: all weights are trained": lora is None,
        "training.lora.lora_dropout is above 0": lora is not None and lora.lora_dropout > 0,
        "training.disable_dropout is off": not training.disable_dropout,
        "training.packing is off": training.packing == "off",
        "training.fp16 scales losses": training.fp16,
        f"training.optim={training.optim} is none of {', '.join(OPTIMIZERS)}": (
            training.optim not in OPTIMIZERS
        ),
        f"training.lr_scheduler_type={training.lr_scheduler_type} reads the loss": (
            training.lr_scheduler_type in ADAPTIVE_SCHEDULES
        ),
        f"policy.dtype={dtype} without training.bf16": dtype != "float32" and not training.bf16,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def fusing_key(trial: TrialSpec) -> tuple[int, bool]:
    """Equal for trials that can share a group: the same data order, batches cut alike."""
    return trial.seed, not ROW_MIXING_LOSSES.isdisjoint(split_loss(trial.loss_type))


def cut(items: Sequence[_Item], limits: Sequence[int]) -> list[list[_Item]]:
    """The items in groups, in order, none with more than any of its items allows (0: any number).

    >>> cut("abcde", [0, 0, 2, 0, 0])
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    groups: list[list[_Item]] = []
    most = 0
    for item, limit in zip(items, limits, strict=True):
        allowed = min(most or limit, limit or most)
        if not groups or (allowed and len(groups[-1]) >= allowed):
            groups.append([])
            allowed = limit
        groups[-1].append(item)
        most = allowed
    return groups
