"""Computes a trial's loss of a batch and its metrics from per-token log-probabilities.

The formulas are those of the catalogue in losses.py, and of TRL, in forms that are valid for every
log-ratio. TRL's formulas overflow: forward KL has a loss of 0 with a NaN gradient for log-ratios
below -88, discopop has a NaN loss, and alpha-divergences with a small alpha lose precision. Nothing
here reads the device, and everything runs under `torch.vmap`.

Shapes: P pairs; B = 2P rows of TRL's batch (chosen, then rejected), T its length.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from prefsweep.sweeps.grid import TrialSpec, split_loss
from prefsweep.workers.batches import REFERENCE_SUMS
from prefsweep.workers.deferred import Deferred, deferred, ratio

DISCOPOP_TAU = 0.05
"""discopop's temperature if a trial sets none; as in TRL."""
LARGEST_EXPONENT = 80.0
"""Above this, exp is continued by its tangent, so that losses and gradients are numbers in fp32. A
pair that is so wrong then has a gradient with infinite norm, which ends the trial; a pair that is
so right has no gradient."""
SATURATED = 200.0
"""Above this, a sigmoid is 0 or 1 in fp32, and exo_pair is constant."""

Strength = float | torch.Tensor
"""A trial's beta; under vmap a tensor."""


@dataclass(frozen=True)
class Ratios:
    """The inputs of the losses."""

    policy_2P: torch.Tensor
    """The policy's log-probabilities of the sequences, chosen and rejected."""
    reference_2P: torch.Tensor
    """The reference's log-probabilities."""
    x_P: torch.Tensor
    """Log-ratios to the reference, chosen."""
    y_P: torch.Tensor
    """Log-ratios to the reference, rejected."""
    lengths_2P: torch.Tensor
    """Number of tokens of the completions, chosen and rejected, at least 1."""
    sft: torch.Tensor | None
    """Mean negative log-probability of the chosen completions' tokens."""


def batch_loss(
    trial: TrialSpec,
    beta: Strength,
    outputs: Mapping[str, torch.Tensor],
    batch: Mapping[str, torch.Tensor],
) -> tuple[torch.Tensor, dict[str, Deferred]]:
    """The mean loss of a batch's pairs, and TRL's metrics.

    `outputs` are packing.OUTPUTS, (B, T - 1); outside completions, log_probs must be 0, and other
    values are ignored. `batch` has completion_mask (B, T) and the reference's sums (P,). `beta`
    replaces the trial's.
    """
    mask_BT = batch["completion_mask"][:, 1:].bool()
    ratios = _ratios(trial, outputs["log_probs"], mask_BT, batch)
    names = split_loss(trial.loss_type)
    weights = trial.loss_weights or (1.0,) * len(names)
    loss = torch.zeros((), device=mask_BT.device)
    for name, weight in zip(names, weights, strict=True):
        loss = loss + pair_losses(name, trial, beta, ratios).mean() * weight
    return loss, _metrics(beta, ratios, outputs, mask_BT)


def pair_losses(name: str, trial: TrialSpec, beta: Strength, ratios: Ratios) -> torch.Tensor:
    """The losses (P,) of one loss of the catalogue; () if it is a loss of the complete batch."""
    b, e, (x, y) = beta, trial.label_smoothing, (ratios.x_P, ratios.y_P)
    f_x, f_y = (f_prime(each, trial) for each in (x, y))

    def z() -> torch.Tensor:
        return b * (f_x - f_y)

    def z_by_length() -> torch.Tensor:
        chosen, rejected = ratios.lengths_2P.chunk(2)
        return f_x / chosen - f_y / rejected

    def smoothed(z: torch.Tensor) -> torch.Tensor:
        return -(1 - e) * logsigmoid(z) - e * logsigmoid(-z)

    def exo(z: torch.Tensor) -> torch.Tensor:
        right = torch.sigmoid(z) * (logsigmoid(z) - math.log1p(-e))
        return right + torch.sigmoid(-z) * (logsigmoid(-z) - math.log(e))

    def discopop(z: torch.Tensor) -> torch.Tensor:
        t = z / (trial.discopop_tau or DISCOPOP_TAU)
        return -torch.sigmoid(-t) * logsigmoid(z) + _tangent_beyond(torch.exp, logsigmoid(t) - z)

    def sft() -> torch.Tensor:
        assert ratios.sft is not None
        return ratios.sft

    def aot() -> torch.Tensor:
        halves = (each.chunk(2) for each in (ratios.policy_2P, ratios.reference_2P))
        policy_P, reference_P = ((chosen - rejected).sort().values for chosen, rejected in halves)
        return b * (policy_P - reference_P)

    losses: dict[str, Callable[[], torch.Tensor]] = {
        "sigmoid": lambda: -logsigmoid(z()),
        "hinge": lambda: torch.relu(1 - z()),
        "ipo": lambda: (z_by_length() - 1 / (2 * b)) ** 2,
        "exo_pair": lambda: exo(z().clamp(-SATURATED, SATURATED)),
        "nca_pair": lambda: (
            -logsigmoid(b * x) - 0.5 * logsigmoid(-b * x) - 0.5 * logsigmoid(-b * y)
        ),
        "robust": lambda: (-(1 - e) * logsigmoid(z()) + e * logsigmoid(-z())) / (1 - 2 * e),
        "bco_pair": lambda: -logsigmoid(b * x) - logsigmoid(-b * y),
        "sppo_hard": lambda: (x - 0.5 / b) ** 2 + (y + 0.5 / b) ** 2,
        "aot": lambda: smoothed(aot()),
        "aot_unpaired": lambda: smoothed(b * (x.sort().values - y.sort().values)),
        "apo_zero": lambda: torch.sigmoid(-b * x) + torch.sigmoid(b * y),
        "apo_down": lambda: torch.sigmoid(b * x) + torch.sigmoid(-b * (x - y)),
        "discopop": lambda: discopop(z()),
        "sft": sft,
        "sigmoid_norm": lambda: -logsigmoid(b * z_by_length()),
    }
    return losses[name]()


def f_prime(log_u: torch.Tensor, trial: TrialSpec) -> torch.Tensor:
    """f'(u) of the trial's divergence, at log u."""
    if trial.f_divergence_type == "reverse_kl" or trial.alpha == 0:
        return log_u
    if trial.f_divergence_type == "js_divergence":
        return math.log(2) + logsigmoid(log_u)
    alpha = 1.0 if trial.alpha is None else trial.alpha  # forward KL is alpha = 1
    return _tangent_beyond(_expm1, -alpha * log_u, -1 / alpha)


def _expm1(exponent: torch.Tensor) -> torch.Tensor:
    """exp - 1. torch's expm1 is exact, but its gradient, 1 + expm1, is inexact if it is near 0."""
    return torch.where(exponent > -0.5, exponent.expm1(), exponent.exp() - 1)


def _tangent_beyond(
    exp: Callable[[torch.Tensor], torch.Tensor], exponent: torch.Tensor, factor: float = 1.0
) -> torch.Tensor:
    """factor x exp (or expm1), continued by its tangent above LARGEST_EXPONENT."""
    inside = exponent.clamp(max=LARGEST_EXPONENT)
    beyond = (exponent - LARGEST_EXPONENT).clamp(min=0)  # not `- inside`: its gradient would cancel
    return exp(inside) * factor + beyond * factor * math.exp(LARGEST_EXPONENT)


def _ratios(
    trial: TrialSpec,
    log_probs_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    batch: Mapping[str, torch.Tensor],
) -> Ratios:
    lengths_B = mask_BT.sum(1)
    weighted_BT = log_probs_BT
    if trial.ld_alpha is not None:
        shared_P = torch.minimum(*lengths_B.chunk(2))
        is_tail_BT = mask_BT.cumsum(1) > torch.cat([shared_P, shared_P])[:, None]
        weighted_BT = torch.where(is_tail_BT, trial.ld_alpha * log_probs_BT, log_probs_BT)
    policy_2P = weighted_BT.sum(1)
    reference_2P = torch.cat([batch[name] for name in REFERENCE_SUMS])
    x_P, y_P = (policy_2P - reference_2P).chunk(2)
    sft = None
    if "sft" in split_loss(trial.loss_type):
        sft = -log_probs_BT.chunk(2)[0].sum() / mask_BT.chunk(2)[0].sum()
    return Ratios(policy_2P, reference_2P, x_P, y_P, lengths_B.clamp(min=1), sft)


def _metrics(
    beta: Strength, ratios: Ratios, outputs: Mapping[str, torch.Tensor], mask_BT: torch.Tensor
) -> dict[str, Deferred]:
    """Metrics with TRL's names and definitions: means over tokens of completions, or over pairs."""
    masks = mask_BT.chunk(2)
    num_chosen, num_rejected = (mask.sum() for mask in masks)

    def total(name: str, half: int) -> torch.Tensor:
        return torch.where(masks[half], outputs[name].detach().chunk(2)[half], 0).sum()

    x_P, y_P = (beta * each.detach() for each in (ratios.x_P, ratios.y_P))
    chosen_P, rejected_P = ratios.policy_2P.detach().chunk(2)
    means = {
        "rewards/chosen": x_P,
        "rewards/rejected": y_P,
        "rewards/accuracies": (x_P > y_P).float(),
        "rewards/margins": x_P - y_P,
        "logps/chosen": chosen_P,
        "logps/rejected": rejected_P,
    }
    return {
        "entropy": ratio(total("entropy", 0) + total("entropy", 1), num_chosen + num_rejected),
        "logits/chosen": ratio(total("mean_logits", 0), num_chosen),
        "logits/rejected": ratio(total("mean_logits", 1), num_rejected),
        "mean_token_accuracy": ratio(total("is_top1", 0), num_chosen),
        **{name: deferred(values_P.mean()) for name, values_P in means.items()},
    }
