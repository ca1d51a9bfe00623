"""Turns dropout off in any architecture, and checks that two training-mode passes agree.

TRL's `disable_dropout` sets `p` of `torch.nn.Dropout` modules. Many models apply dropout as a
function instead (OPT, Bloom, Falcon, Starcoder2, ...), skip layers at random (OPT's layerdrop) or
add noise to a router (Mixtral's router_jitter_noise), with a rate that they read from an attribute
of a module or from their config in each forward pass.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedConfig

from prefsweep.sweeps.errors import TrialError
from prefsweep.workers.forward import HALF_TOLERANCE, TOLERANCE, Sequences, base_model, padded_logps

NOISE = re.compile("drop|jitter", re.IGNORECASE)
"""Names of modules, attributes and config fields of dropout or noise."""


@contextmanager
def without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """Set every rate of dropout or noise to 0 inside the block.

    The rates are restored at the end, so that configs are saved as they were loaded.
    """
    changed = [(owner, name, getattr(owner, name)) for owner, name in _rates(model)]
    for owner, name, _ in changed:
        setattr(owner, name, 0.0)
    try:
        yield
    finally:
        for owner, name, rate in changed:
            setattr(owner, name, rate)


@torch.no_grad()
def require_no_noise(model: Any, sequences: Sequences) -> None:
    """Raise TrialError if two forward passes in training mode differ.

    The states of torch's random number generators are restored.
    """
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng():
            first, second = (padded_logps(model, sequences) for _ in range(2))
    finally:
        model.train(was_training)
    half = next(model.parameters()).dtype != torch.float32
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    if model.device.type == "cpu":  # the same operations in the same order give the same bits
        tolerance = 0.0
    if (first - second).abs().max().item() > tolerance:  # the loss reports NaN
        raise TrialError(
            f"{type(base_model(model)).__name__}: two forward passes over the same tokens in "
            "training mode differ, although training.disable_dropout is true: the model adds other "
            "noise, which cannot be turned off. Set training.disable_dropout=false to train with it"
        )


def _rates(model: torch.nn.Module) -> Iterator[tuple[Any, str]]:
    """(owner, attribute) of every rate that is not 0, in modules and in their configs."""
    owners: dict[int, Any] = {}
    for module in model.modules():
        owners[id(module)] = module
        _add_configs(owners, module)
    for owner in owners.values():
        is_dropout = NOISE.search(type(owner).__name__) is not None
        for name, value in vars(owner).items():
            is_rate = NOISE.search(name) is not None or (is_dropout and name == "p")
            if is_rate and isinstance(value, float) and value:
                yield owner, name


def _add_configs(owners: dict[int, Any], owner: Any) -> None:
    """Add the configs of `owner`, and configs inside them."""
    for value in vars(owner).values():
        if isinstance(value, PreTrainedConfig) and id(value) not in owners:
            owners[id(value)] = value
            _add_configs(owners, value)
