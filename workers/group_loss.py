"""The losses of several trials on one batch, by TRL's own code, without reading the device.

Trials whose losses differ in beta alone are run as one, batched by `torch.vmap`; every other
difference (loss, divergence, alpha, smoothing, ...) is a call of its own.

Shapes: K trials; B rows of TRL's batch (chosen, then rejected), T its length.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from prefsweep.sweeps.grid import TrialSpec
from prefsweep.workers.batches import CHOSEN_PLACES, REFERENCE_SUMS, REJECTED_PLACES
from prefsweep.workers.deferred import Deferred, Deferring, deferred
from prefsweep.workers.losses import trl_arguments
from prefsweep.workers.packing import OUTPUTS


@dataclass(frozen=True)
class Numbers:
    """The metrics of one call: of some of the trials, still on the device."""

    positions: tuple[int, ...]
    """Which of the K trials."""
    of: Mapping[str, Callable[..., float]]
    """Name of a metric to what makes it of its tensors."""
    tensors: Mapping[str, Sequence[torch.Tensor]]
    """Name to tensors, (trials of the call,) each."""


class GroupLoss:
    """TRL's loss of each of some trials, whose per-token outputs are given."""

    def __init__(self, trials: Sequence[TrialSpec], device: torch.device) -> None:
        alike: dict[TrialSpec, list[int]] = {}
        for position, trial in enumerate(trials):
            fixed = trial.model_copy(update={"beta": 1.0, "learning_rate": 1.0, "seed": 0})
            alike.setdefault(fixed, []).append(position)
        self._trials = list(trials)
        self._calls = [
            (
                tuple(positions),
                torch.tensor([trials[p].beta for p in positions], device=device),
                _trainer(trials[positions[0]], device),
            )
            for positions in alike.values()
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
        losses: list[torch.Tensor | None] = [None] * len(self._trials)
        numbers: list[Numbers] = []
        places = [batch.get(name) for name in (CHOSEN_PLACES, REJECTED_PLACES)]
        for positions, betas, trainer in self._calls:
            inputs = {**batch, **references[self._trials[positions[0]].ld_alpha]}
            loss = _Call(trainer, inputs, places)
            own = [outputs[name] for name in OUTPUTS]
            if len(positions) < len(self._trials):
                own = [torch.stack([each[p] for p in positions]) for each in own]
            if len(positions) > 1 and None not in places:
                values, tensors = torch.vmap(loss)(betas, *own)
                numbers.append(Numbers(positions, loss.of, tensors))
                for index, position in enumerate(positions):
                    losses[position] = values[index]
                continue
            for index, position in enumerate(positions):
                beta = self._trials[position].beta
                losses[position], one = loss(beta, *(each[index] for each in own))
                tensors = {name: [each.reshape(1) for each in some] for name, some in one.items()}
                numbers.append(Numbers((position,), loss.of, tensors))
        return torch.stack([loss for loss in losses if loss is not None]), numbers


class _Call:
    """TRL's loss of one trial as a function of its beta and its per-token outputs."""

    def __init__(
        self,
        trainer: Any,
        inputs: Mapping[str, torch.Tensor],
        places: Sequence[torch.Tensor | None],
    ) -> None:
        names = ("input_ids", "attention_mask", "completion_mask", *REFERENCE_SUMS)
        self._inputs = {name: inputs[name] for name in names}
        self._trainer, self._places = trainer, places
        self.of: dict[str, Callable[..., float]] = {}

    def __call__(
        self, beta: float | torch.Tensor, *outputs_BT: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
        trainer, outputs = (
            self._trainer,
            SimpleNamespace(**dict(zip(OUTPUTS, outputs_BT, strict=True))),
        )
        trainer.beta = beta
        trainer._metrics = {"train": defaultdict(list)}
        chosen, rejected = self._places
        later = None if chosen is None or rejected is None else Deferring(chosen, rejected)
        with later or nullcontext():
            loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, self._inputs, False)
        del trainer._metrics["train"]["num_tokens"]  # of this process only
        metrics: dict[str, Deferred] = {
            name: value if isinstance(value, Deferred) else deferred(torch.tensor(value))
            for name, (value,) in trainer._metrics["train"].items()
        }
        self.of = {name: value.of for name, value in metrics.items()}
        return loss, {name: value.tensors for name, value in metrics.items()}


def _trainer(trial: TrialSpec, device: torch.device) -> Any:
    """What TRL's loss reads of its trainer."""
    arguments = trl_arguments(trial)
    accelerator = SimpleNamespace(device=device, gather=_alone, gather_for_metrics=_alone)
    defaults = DPOConfig.__dataclass_fields__
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        args=SimpleNamespace(
            discopop_tau=arguments.get("discopop_tau", defaults["discopop_tau"].default)
        ),
        loss_types=arguments["loss_type"],
        loss_weights=arguments.get("loss_weights") or [1.0] * len(arguments["loss_type"]),
        f_divergence_type=arguments["f_divergence_type"],
        f_alpha_divergence_coef=arguments.get("f_alpha_divergence_coef", 1.0),
        label_smoothing=arguments["label_smoothing"],
        ld_alpha=arguments["ld_alpha"],
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        use_weighting=False,
        _total_train_tokens=0,
        _tp_size=1,
    )


def _alone(value: Any) -> Any:
    """Gathers over one process."""
    return value
