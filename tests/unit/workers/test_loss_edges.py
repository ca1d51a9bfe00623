"""Losses and gradients for log-ratios of any size: the right number, or one that ends the trial."""

import itertools
import math

import numpy as np
import pytest
import torch

from prefsweep.sweeps.grid import LOSS_NAMES, TrialSpec
from prefsweep.workers.batches import REFERENCE_SUMS
from prefsweep.workers.objective import batch_loss
from prefsweep.workers.packing import OUTPUTS

from .closed_forms import Batch, Vector, every_case, f_prime, log_s, one_loss, trial

EDGES = (-1e3, -500.0, -100.0, -88.8, -60.0, -1.0, 0.0, 1.0, 60.0, 88.8, 100.0, 500.0, 1e3)
ALPHAS = (1e-6, 1e-5, 1e-4, 0.3, 2.0)
CASES = every_case(ALPHAS, betas=(0.05, 1.0, 10.0))


def losses_and_gradients(case: TrialSpec, pairs_P2: Vector) -> tuple[Vector, torch.Tensor]:
    """Of batches of one pair each, given by their log-ratios; (P,) and (P, 2), by log-probability.

    A completion is one token.
    """
    logps_P2 = torch.tensor([[-1.0, -2.0]]).repeat(len(pairs_P2), 1).requires_grad_()
    references_P2 = logps_P2.detach() - torch.tensor(pairs_P2, dtype=torch.float32)
    zeros = torch.zeros(2, 1)

    def one(logps_2: torch.Tensor, references_2: torch.Tensor) -> torch.Tensor:
        outputs: dict[str, torch.Tensor] = dict.fromkeys(OUTPUTS, zeros)
        references = dict(zip(REFERENCE_SUMS, references_2.split(1), strict=True))
        batch = {"completion_mask": torch.tensor([[0, 1], [0, 1]]), **references}
        outputs["log_probs"] = logps_2[:, None]
        return batch_loss(case, case.beta, outputs, batch)[0]

    losses_P = torch.vmap(one)(logps_P2, references_P2)
    (gradient_P2,) = torch.autograd.grad(losses_P.sum(), logps_P2)
    return losses_P.detach().numpy(), gradient_P2


def loss_and_gradient(case: TrialSpec, x: float, y: float) -> tuple[float, list[float]]:
    """Of one pair."""
    losses_P, gradient_P2 = losses_and_gradients(case, np.array([[x, y]]))
    return float(losses_P[0]), gradient_P2[0].tolist()


def truth(case: TrialSpec, x_P: Vector, y_P: Vector) -> Vector:
    """Closed forms, each of a batch of one pair; in 80 bits, which hold exp(2000)."""
    if case.loss_type in ("aot", "aot_unpaired"):  # nothing to sort in a batch of one
        z, e = case.beta * (x_P - y_P), case.label_smoothing
        return -(1 - e) * log_s(z) - e * log_s(-z)
    batch = object.__new__(Batch)
    batch.lengths, batch.log_ratios = np.ones((2, len(x_P)), int), np.stack([x_P, y_P])
    batch.tokens = [[np.array([logp])] * len(x_P) for logp in (-1.0, -2.0)]
    with np.errstate(all="ignore"):
        return np.broadcast_to(one_loss(case.loss_type, case, batch), len(x_P))


@pytest.mark.parametrize("loss_type", LOSS_NAMES)
def test_every_loss_is_right_for_every_log_ratio_or_ends_the_trial(loss_type: str) -> None:
    """It ends where the loss or the gradient's norm is not a number of fp32, in truth too."""
    pairs_P2 = np.array(list(itertools.product(EDGES, EDGES)))
    x_P, y_P = pairs_P2.T.astype(np.longdouble)
    step = np.longdouble(1e-9)
    for case in [case for case in CASES if case.loss_type == loss_type]:
        loss_P, gradient_P2 = losses_and_gradients(case, pairs_P2)
        norm_P = torch.linalg.vector_norm(gradient_P2, dim=1).numpy()
        true_P = truth(case, x_P, y_P)
        with np.errstate(all="ignore"):
            slope_P2 = np.stack(
                [
                    truth(case, x_P + dx, y_P + dy) - truth(case, x_P - dx, y_P - dy)
                    for dx, dy in ((step, 0), (0, step))
                ],
                axis=1,
            ) / (2 * step)
        if loss_type == "sft":
            slope_P2 = np.broadcast_to([-1.0, 0.0], slope_P2.shape)
        steepest_P = np.nan_to_num(np.abs([*slope_P2.T, true_P]), nan=np.inf).max(0)
        ends_P = ~(np.isfinite(loss_P) & np.isfinite(norm_P))
        assert (steepest_P[ends_P] > 1e9).all(), (
            case
        )  # a difference of a bounded loss shows no more
        vast_P = ~ends_P & (steepest_P >= 1e12)
        assert (np.maximum(np.abs(loss_P), norm_P)[vast_P] > 1e9).all(), case
        usual_P = ~ends_P & ~vast_P
        assert loss_P[usual_P] == pytest.approx(true_P[usual_P], rel=1e-4, abs=1e-4), case
        corner_P = (loss_type == "hinge") & (np.abs(true_P) < 1e-3)
        smooth_P = usual_P & ~corner_P & (steepest_P < 1e6)  # over a step
        gap_P = np.abs(gradient_P2.numpy() - slope_P2).max(1)
        assert (gap_P <= 1e-4 + 1e-3 * steepest_P)[smooth_P].all(), case


@pytest.mark.parametrize("alpha", ALPHAS)
def test_an_alpha_divergence_keeps_its_digits_down_to_the_smallest_alpha(alpha: float) -> None:
    case = trial(f_divergence_type="alpha_divergence", alpha=alpha, beta=1.0)
    for x in (-30.0, -1.0, -1e-3, 1e-3, 1.0, 30.0):
        loss, (slope, _) = loss_and_gradient(case, x, 0.0)
        margin = float(f_prime(np.array(x), "alpha_divergence", alpha))
        assert loss == pytest.approx(np.logaddexp(0.0, -margin), rel=1e-6)
        expected = -math.exp(-alpha * x) / (1 + math.exp(min(margin, 700.0)))
        assert slope == pytest.approx(expected, rel=2e-4, abs=1e-12)


def test_a_pair_that_forward_kl_has_won_by_far_has_no_loss_and_no_gradient() -> None:
    """TRL's loss is 0 here too, but its gradient is not a number."""
    case = trial(f_divergence_type="forward_kl", beta=0.1)
    assert loss_and_gradient(case, 0.0, -90.0) == (0.0, [0.0, 0.0])


def test_a_pair_that_forward_kl_has_lost_by_far_ends_the_trial() -> None:
    loss, gradient = loss_and_gradient(trial(f_divergence_type="forward_kl", beta=0.1), -90.0, 0.0)
    assert math.isfinite(loss) and loss > 1e30
    assert torch.linalg.vector_norm(torch.tensor(gradient)).isinf()


@pytest.mark.parametrize("tau", [None, 0.5, 1.0])
@pytest.mark.parametrize("d", [-1e3, -100.0, 100.0, 1e3])
def test_discopop_is_a_number_for_large_log_ratios(d: float, tau: float | None) -> None:
    case = trial("discopop", beta=1.0, discopop_tau=tau)
    loss, gradient = loss_and_gradient(case, d, 0.0)
    t = tau or 0.05
    blended = -d if d < 0 else 0.0
    assert loss == pytest.approx(blended + (1.0 if t == 1.0 and d < 0 else 0.0), abs=1e-4)
    assert all(map(math.isfinite, gradient))
