"""Batches of given numbers, and the float64 losses of a batch in closed form, from the papers."""

import itertools
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefsweep.sweeps.grid import LOSS_NAMES, TrialSpec, split_loss

PROMPT = 2
Vector = NDArray[np.float64]
DIVERGED = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop")
ALPHAS = (0.3, 0.5, 0.7, 2.0)
BETAS = (0.1, 1.0)
SMOOTHING = {"exo_pair": 1e-3, "robust": 0.1, "aot": 0.1, "aot_unpaired": 0.1}


def trial(loss_type: str = "sigmoid", **fields: Any) -> TrialSpec:
    smoothing = max(SMOOTHING.get(name, 0.0) for name in split_loss(loss_type))
    defaults: dict[str, Any] = {"beta": 0.1, "learning_rate": 1e-5, "label_smoothing": smoothing}
    return TrialSpec(loss_type=loss_type, **(defaults | fields))


def divergences(alphas: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {"f_divergence_type": "reverse_kl"},
        {"f_divergence_type": "forward_kl"},
        {"f_divergence_type": "js_divergence"},
        *({"f_divergence_type": "alpha_divergence", "alpha": alpha} for alpha in alphas),
    ]


def every_case(alphas: Sequence[float], betas: Sequence[float]) -> list[TrialSpec]:
    """Every loss of the catalogue with each divergence that it has, at each beta."""
    return [
        trial(loss, beta=beta, **divergence)
        for loss, divergence, beta in itertools.product(LOSS_NAMES, divergences(alphas), betas)
        if loss in DIVERGED or divergence["f_divergence_type"] == "reverse_kl"
    ]


DIVERGENCES = divergences(ALPHAS)
CASES = every_case(ALPHAS, BETAS)


class Batch:
    """Preference pairs with given per-token log-probabilities and reference sums.

    All numbers are multiples of 2^-10, so that sums and differences are exact in fp32 and what is
    compared is the loss alone.
    """

    def __init__(self, scale: float, num_pairs: int = 6, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.lengths = generator.integers(1, 8, (2, num_pairs))
        self.tokens = [
            [dyadic(-generator.exponential(2.0, length)) for length in side]
            for side in self.lengths
        ]
        self.log_ratios = dyadic(generator.uniform(-scale, scale, (2, num_pairs)))

    def swapped(self) -> "Batch":
        """The same pairs with chosen and rejected exchanged."""
        other = object.__new__(Batch)
        other.lengths, other.log_ratios = self.lengths[::-1], self.log_ratios[::-1]
        other.tokens = self.tokens[::-1]
        return other

    def sums(self, ld_alpha: float | None = None) -> Vector:
        """Policy log-probabilities [2, pairs]; tokens beyond the shorter one count ld_alpha."""
        weight = 1.0 if ld_alpha is None else ld_alpha
        shared = self.lengths.min(axis=0)
        return np.array(
            [
                [t[:n].sum() + weight * t[n:].sum() for t, n in zip(side, shared, strict=True)]
                for side in self.tokens
            ]
        )


def dyadic(values: Vector) -> Vector:
    return np.round(values * 1024) / 1024


def log_s(z: Vector) -> Vector:
    """log of the sigmoid."""
    return -np.logaddexp(0.0, -z)


def s(z: Vector) -> Vector:
    return np.exp(log_s(z))


def f_prime(log_u: Vector, kind: str, alpha: float | None) -> Vector:
    if kind == "reverse_kl":
        return log_u
    if kind == "forward_kl":
        return -np.expm1(-log_u)
    if kind == "js_divergence":
        return math.log(2) + log_s(log_u)
    assert kind == "alpha_divergence" and alpha is not None
    return -np.expm1(-alpha * log_u) / alpha


def one_loss(name: str, trial: TrialSpec, batch: Batch) -> Vector:
    """Loss of each pair, float64."""
    b, e, tau = trial.beta, trial.label_smoothing, trial.discopop_tau or 0.05
    policy = batch.sums(trial.ld_alpha)
    reference = policy - batch.log_ratios
    x, y = batch.log_ratios
    f_x, f_y = f_prime(batch.log_ratios, trial.f_divergence_type, trial.alpha)
    z = b * (f_x - f_y)
    f_c, f_r = np.stack([f_x, f_y]) / batch.lengths
    aot = b * (np.sort(policy[0] - policy[1]) - np.sort(reference[0] - reference[1]))
    unpaired = b * (np.sort(x) - np.sort(y))
    forms: dict[str, Callable[[], Any]] = {
        "sigmoid": lambda: -log_s(z),
        "hinge": lambda: np.maximum(0.0, 1 - z),
        "ipo": lambda: (f_c - f_r - 1 / (2 * b)) ** 2,
        "exo_pair": lambda: s(z) * (log_s(z) - math.log(1 - e)) + s(-z) * (log_s(-z) - math.log(e)),
        "nca_pair": lambda: -log_s(b * x) - log_s(-b * x) / 2 - log_s(-b * y) / 2,
        "robust": lambda: (-(1 - e) * log_s(z) + e * log_s(-z)) / (1 - 2 * e),
        "bco_pair": lambda: -log_s(b * x) - log_s(-b * y),
        "sppo_hard": lambda: (x - 1 / (2 * b)) ** 2 + (y + 1 / (2 * b)) ** 2,
        "aot": lambda: -(1 - e) * log_s(aot) - e * log_s(-aot),
        "aot_unpaired": lambda: -(1 - e) * log_s(unpaired) - e * log_s(-unpaired),
        "apo_zero": lambda: 1 - s(b * x) + s(b * y),
        "apo_down": lambda: s(b * x) + 1 - s(b * (x - y)),
        "discopop": lambda: -s(-z / tau) * log_s(z) + np.exp(log_s(z / tau) - z),
        "sft": lambda: -np.concatenate(batch.tokens[0]).mean(keepdims=True),
        "sigmoid_norm": lambda: -log_s(b * (f_c - f_r)),
    }
    return forms[name]()


def closed_form(trial: TrialSpec, batch: Batch) -> float:
    names = split_loss(trial.loss_type)
    weights = trial.loss_weights or (1.0,) * len(names)
    losses = [one_loss(name, trial, batch).mean() for name in names]
    return sum(weight * loss for weight, loss in zip(weights, losses, strict=True))


def collated(batch: Batch, ld_alpha: float | None) -> tuple[dict[str, torch.Tensor], Any]:
    """TRL's padded [chosen; rejected] inputs, and a model that answers with the batch's numbers."""
    rows = [tokens for side in batch.tokens for tokens in side]
    mask = torch.zeros(len(rows), PROMPT + max(map(len, rows)), dtype=torch.long)
    log_probs = torch.zeros(mask.size(0), mask.size(1) - 1)
    for i, tokens in enumerate(rows):
        mask[i, PROMPT : PROMPT + len(tokens)] = 1
        log_probs[i, PROMPT - 1 : PROMPT - 1 + len(tokens)] = torch.tensor(tokens)
    outputs = SimpleNamespace(
        log_probs=log_probs,
        entropy=torch.zeros_like(log_probs),
        mean_logits=torch.zeros_like(log_probs),
        is_top1=torch.zeros_like(log_probs, dtype=torch.bool),
    )

    def model(**inputs: Any) -> SimpleNamespace:
        assert inputs["labels"].shape == mask.shape
        return outputs

    reference = torch.tensor(batch.sums(ld_alpha) - batch.log_ratios, dtype=torch.float32)
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": reference[0],
        "ref_rejected_logps": reference[1],
    }
    return inputs, model
