"""Computes the losses of several trials on one batch (objective.py), without reading the device.

Trials whose losses differ only in beta are computed in one call, batched by `torch.vmap`. Any other
difference (loss, divergence, alpha, smoothing, ...) needs a separate call.

Shapes: K trials; B rows of TRL's batch (chosen, then rejected), T its length.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from prefsweep.sweeps.grid import TrialSpec
from prefsweep.workers.objective import Strength, batch_loss
from prefsweep.workers.packing import OUTPUTS


@dataclass(frozen=True)
class Numbers:
    """The metrics of one call for some of the trials, still on the device."""

    positions: tuple[int, ...]
    """Indices of these trials among the K."""
    of: Mapping[str, Callable[..., float]]
    """Name of a metric -> the function that computes it from its tensors."""
    tensors: Mapping[str, Sequence[torch.Tensor]]
    """Name of a metric -> its tensors, (trials of the call,) each."""


class GroupLoss:
    """Computes the loss of each trial from its per-token outputs."""

    def __init__(self, trials: Sequence[TrialSpec], device: torch.device) -> None:
        alike: dict[TrialSpec, list[int]] = {}
        for position, trial in enumerate(trials):
            fixed = trial.model_copy(update={"beta": 1.0, "learning_rate": 1.0, "seed": 0})
            alike.setdefault(fixed, []).append(position)
        self._trials = list(trials)
        self._calls = [
            (tuple(at), torch.tensor([trials[p].beta for p in at], device=device))
            for at in alike.values()
        ]

    def __call__(
        self,
        outputs: Mapping[str, torch.Tensor],
        batch: Mapping[str, torch.Tensor],
        references: Mapping[float | None, Mapping[str, torch.Tensor]],
    ) -> tuple[torch.Tensor, list[Numbers]]:
        """Losses (K,) with gradients, and metrics.

        `outputs` are OUTPUTS by name, (K, B, T - 1); `references` are REFERENCE_SUMS by ld_alpha.
        """
        losses: dict[int, torch.Tensor] = {}
        numbers: list[Numbers] = []
        for positions, betas in self._calls:
            trial = self._trials[positions[0]]
            loss = _Call(trial, {**batch, **references[trial.ld_alpha]})
            own = [outputs[name] for name in OUTPUTS]
            if len(positions) == 1:
                value, one = loss(trial.beta, *(each[positions[0]] for each in own))
                tensors = {name: [each.reshape(1) for each in some] for name, some in one.items()}
                values = [value]
            else:
                if len(positions) < len(self._trials):
                    own = [torch.stack([each[p] for p in positions]) for each in own]
                values, tensors = torch.vmap(loss)(betas, *own)
            numbers.append(Numbers(positions, loss.of, tensors))
            losses |= dict(zip(positions, values, strict=True))
        return torch.stack([losses[position] for position in range(len(self._trials))]), numbers


class _Call:
    """A trial's loss as a function of its beta and its per-token outputs."""

    def __init__(self, trial: TrialSpec, inputs: Mapping[str, torch.Tensor]) -> None:
        self._trial, self._inputs = trial, inputs
        self.of: dict[str, Callable[..., float]] = {}

    def __call__(
        self, beta: Strength, *outputs_BT: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
        outputs: dict[str, torch.Tensor] = dict(zip(OUTPUTS, outputs_BT, strict=True))
        loss, metrics = batch_loss(self._trial, beta, outputs, self._inputs)
        self.of = {name: value.of for name, value in metrics.items()}
        return loss, {name: value.tensors for name, value in metrics.items()}
