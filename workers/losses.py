"""The loss catalogue, and the arguments of TRL's DPOConfig for a grid point.

x and y are the log-ratios log(policy/reference) of the chosen and the rejected completion, summed
over tokens; d = f'(e^x) - f'(e^y) is their difference after the divergence; s is the sigmoid, b is
beta, e is label_smoothing, tau is discopop_tau; |c| and |r| are lengths in tokens. A batch's loss
is the mean over its pairs.

loss          one pair's loss                                                        arXiv
sigmoid       -log s(b d)                                           (DPO)            2305.18290
hinge         max(0, 1 - b d)                                       (SLiC, RSO)      2309.06657
ipo           (f'(e^x)/|c| - f'(e^y)/|r| - 1/(2b))^2                                 2310.12036
exo_pair      q log(q/(1-e)) + (1-q) log((1-q)/e),  q = s(b d)                       2402.00856
nca_pair      -log s(b x) - log s(-b x)/2 - log s(-b y)/2                            2402.05369
robust        (-(1-e) log s(b d) + e log s(-b d)) / (1 - 2e)                         2403.00409
bco_pair      -log s(b x) - log s(-b y)                             (no shift)       2404.04656
sppo_hard     (x - 1/(2b))^2 + (y + 1/(2b))^2                                        2405.00675
aot           -(1-e) log s(b z) - e log s(-b z), z: sorted policy differences        2406.05882
              (chosen - rejected) less sorted reference differences
aot_unpaired  the same, z: sorted x less sorted y                                    2406.05882
apo_zero      1 - s(b x) + s(b y)                                                    2408.06266
apo_down      s(b x) + 1 - s(b (x - y))                                              2408.06266
discopop      -(1-m) log s(b d) + m exp(-b d),  m = s(b d/tau)                       2406.08414
sft           mean over all chosen tokens of the batch of -log policy                2404.19733
sigmoid_norm  -log s(b (f'(e^x)/|c| - f'(e^y)/|r|))                                  2411.15124

divergence        f'(u), u = policy/reference                       (f-DPO)          2309.16240
reverse_kl        log u
forward_kl        1 - 1/u
js_divergence     log(2u / (1 + u))
alpha_divergence  (1 - u^-alpha) / alpha;  alpha = 1 is forward_kl, alpha -> 0 reverse_kl

ld_alpha weights the log-probabilities of the tokens beyond the shorter completion (2409.06411).
"""

from typing import TypedDict

from prefsweep.sweeps.fusing import ROW_MIXING_LOSSES
from prefsweep.sweeps.grid import TrialSpec, split_loss


class _Given(TypedDict, total=False):
    loss_weights: list[float]
    f_alpha_divergence_coef: float
    discopop_tau: float


class TrlArguments(_Given):
    """DPOConfig's keyword arguments for a loss; those of `_Given` only if the trial sets them."""

    loss_type: list[str]
    beta: float
    f_divergence_type: str
    label_smoothing: float
    ld_alpha: float | None


def trl_arguments(trial: TrialSpec) -> TrlArguments:
    """DPOConfig's keyword arguments for a trial's loss.

    TRL writes the alpha-divergence as f'(u) = (u^(c-1) - 1)/(c-1), so that c = 1 - alpha.
    """
    arguments = TrlArguments(
        loss_type=split_loss(trial.loss_type),
        beta=trial.beta,
        f_divergence_type=trial.f_divergence_type,
        label_smoothing=trial.label_smoothing,
        ld_alpha=trial.ld_alpha,
    )
    if trial.loss_weights is not None:
        arguments["loss_weights"] = list(trial.loss_weights)
    if trial.alpha is not None:
        arguments["f_alpha_divergence_coef"] = 1.0 - trial.alpha
    if trial.discopop_tau is not None:
        arguments["discopop_tau"] = trial.discopop_tau
    return arguments


def mixes_rows(trial: TrialSpec) -> bool:
    """Whether the trial's loss of a batch is not the mean of the losses of its pairs."""
    return not ROW_MIXING_LOSSES.isdisjoint(split_loss(trial.loss_type))
