"""TRL's fp32 losses against float64 closed forms written from the papers."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from numpy.typing import NDArray
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from prefsweep.sweeps.grid import LOSS_NAMES, GridBlock, TrialSpec, expand, split_loss
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.losses import trl_arguments
from prefsweep.workers.models import load_policy, load_tokenizer

Vector = NDArray[np.float64]
DIVERGED = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop")
ALPHAS = (0.3, 0.5, 0.7, 2.0)
BETAS = (0.1, 1.0)
SMOOTHING = {"exo_pair": 1e-3, "robust": 0.1, "aot": 0.1, "aot_unpaired": 0.1}


def trial(loss_type: str = "sigmoid", **fields: Any) -> TrialSpec:
    smoothing = max(SMOOTHING.get(name, 0.0) for name in split_loss(loss_type))
    defaults: dict[str, Any] = {"beta": 0.1, "learning_rate": 1e-5, "label_smoothing": smoothing}
    return TrialSpec(loss_type=loss_type, **(defaults | fields))


DIVERGENCES: list[dict[str, Any]] = [
    {"f_divergence_type": "reverse_kl"},
    {"f_divergence_type": "forward_kl"},
    {"f_divergence_type": "js_divergence"},
    *({"f_divergence_type": "alpha_divergence", "alpha": alpha} for alpha in ALPHAS),
]
CASES = [
    trial(loss, beta=beta, **divergence)
    for loss, divergence, beta in itertools.product(LOSS_NAMES, DIVERGENCES, BETAS)
    if loss in DIVERGED or divergence["f_divergence_type"] == "reverse_kl"
]


# --- a batch, and its loss in closed form ---------------------------------------------------------


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
        "discopop": lambda: -s(-z / tau) * log_s(z) + s(z / tau) * np.exp(-z),
        "sft": lambda: -np.concatenate(batch.tokens[0]).mean(keepdims=True),
        "sigmoid_norm": lambda: -log_s(b * (f_c - f_r)),
    }
    return forms[name]()


def closed_form(trial: TrialSpec, batch: Batch) -> float:
    names = split_loss(trial.loss_type)
    weights = trial.loss_weights or (1.0,) * len(names)
    losses = [one_loss(name, trial, batch).mean() for name in names]
    return sum(weight * loss for weight, loss in zip(weights, losses, strict=True))


# --- TRL's loss -----------------------------------------------------------------------------------

Loss = Callable[[TrialSpec, Batch], float]
PROMPT = 2


class Prepared(DPOTrainer):
    """TRL's trainer on columns that are ready, so that it asks for no reference model."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


@pytest.fixture(scope="module")
def build(policy_source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Any:
    model, tokenizer = load_policy(policy_source), load_tokenizer(policy_source)
    folder: Path = tmp_path_factory.mktemp("trainer")
    row = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}
    row |= {"ref_chosen_logps": -1.0, "ref_rejected_logps": -1.0}

    def build(**arguments: Any) -> DPOTrainer:
        config = DPOConfig(
            output_dir=str(folder),
            precompute_ref_log_probs=True,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            **arguments,
        )
        return Prepared(
            model=model,
            args=config,
            train_dataset=Dataset.from_list([row]),
            processing_class=tokenizer,
        )

    return build


@pytest.fixture(scope="module")
def trl_loss(build: Callable[..., DPOTrainer]) -> Loss:
    """TRL's loss of a batch in fp32: one trainer, its settings changed for every trial."""
    trainer: Any = build()
    default_tau = trainer.args.discopop_tau

    def loss(trial: TrialSpec, batch: Batch) -> float:
        arguments: dict[str, Any] = {**trl_arguments(trial)}
        trainer.loss_types = arguments.pop("loss_type")
        trainer.loss_weights = arguments.pop("loss_weights", [1.0] * len(trainer.loss_types))
        trainer.args.discopop_tau = arguments.pop("discopop_tau", default_tau)
        for name, value in arguments.items():
            assert hasattr(trainer, name)
            setattr(trainer, name, value)
        inputs, model = collated(batch, trial.ld_alpha)
        value = trainer._compute_loss(model, inputs, False)
        assert value.dtype == torch.float32
        return float(value)

    return loss


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


def tempered(trial: TrialSpec, batch: Batch) -> TrialSpec:
    """discopop's exp(-beta d) leaves fp32 at 88: beta so small that beta |d| <= 20."""
    f_x, f_y = f_prime(batch.log_ratios, trial.f_divergence_type, trial.alpha)
    beta = min(trial.beta, 20 / float(np.abs(f_x - f_y).max()))
    return trial.model_copy(update={"beta": beta}) if trial.loss_type == "discopop" else trial


# --- rules ----------------------------------------------------------------------------------------


def name_of(trial: TrialSpec) -> str:
    return f"{trial.loss_type}-{trial.f_divergence_type}-{trial.alpha}-{trial.beta}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_trl_agrees_with_the_papers(case: TrialSpec, trl_loss: Loss):
    for seed, scale in itertools.product(range(3), (0.1, 1.0, 5.0)):
        batch = Batch(scale, seed=seed)
        case = tempered(case, batch)
        assert trl_loss(case, batch) == pytest.approx(closed_form(case, batch), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    "case",
    [
        trial("sigmoid+sft", loss_weights=(1.0, 0.25)),
        trial("sigmoid+sft"),
        trial("hinge+ipo+robust", loss_weights=(0.5, 2.0, 1.0)),
        trial("sigmoid+sft", f_divergence_type="js_divergence"),
        trial("discopop", discopop_tau=0.5),
        trial("sigmoid", ld_alpha=0.5),
        trial("sigmoid_norm", ld_alpha=0.0),
        trial("aot", ld_alpha=0.25),
    ],
    ids=lambda t: f"{t.loss_type}-{t.ld_alpha}-{t.discopop_tau}",
)
def test_combinations_weights_and_lengths_agree_too(case: TrialSpec, trl_loss: Loss):
    for seed in range(3):
        batch = Batch(5.0, seed=seed)
        assert trl_loss(case, batch) == pytest.approx(closed_form(case, batch), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: "-".join(map(str, d.values())))
@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm", "robust"])
def test_a_policy_that_is_the_reference_has_loss_log_2(
    loss: str, divergence: dict[str, Any], trl_loss: Loss
):
    case = trial(loss, beta=1.0, **divergence)
    assert trl_loss(case, Batch(0.0)) == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: "-".join(map(str, d.values())))
def test_swapping_chosen_and_rejected_flips_the_margin(divergence: dict[str, Any], trl_loss: Loss):
    """-log s(m) + log s(-m) = -m, so that the margin can be read from two losses."""
    batch = Batch(1.0, num_pairs=1, seed=1)
    case = trial("sigmoid", **divergence)
    f_x, f_y = f_prime(batch.log_ratios, case.f_divergence_type, case.alpha)
    margin = 0.1 * float((f_x - f_y)[0])
    forward, backward = trl_loss(case, batch), trl_loss(case, batch.swapped())
    assert abs(margin) > 0.01
    assert backward - forward == pytest.approx(margin, rel=1e-4)


@pytest.mark.parametrize("loss", DIVERGED)
def test_alpha_1_is_forward_kl_and_alpha_0_is_reverse_kl(loss: str, trl_loss: Loss):
    def value(kind: str, alpha: float | None = None) -> float:
        case = trial(loss, f_divergence_type=kind, alpha=alpha, beta=1.0)
        return trl_loss(case, Batch(2.0))

    assert value("alpha_divergence", 1.0) == pytest.approx(value("forward_kl"), rel=1e-5)
    assert value("alpha_divergence", 0.0) == value("reverse_kl")
    gaps = [abs(value("alpha_divergence", a) - value("reverse_kl")) for a in (0.1, 0.01, 0.001)]
    assert gaps[0] > 5 * gaps[1] > 25 * gaps[2] > 0  # in proportion to alpha


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_the_grid_allows_a_divergence_where_trl_does(loss: str, build: Callable[..., DPOTrainer]):
    arguments = trl_arguments(trial(loss, f_divergence_type="js_divergence"))
    block = {"loss_type": loss, "f_divergence_type": "js_divergence"}
    block |= {"label_smoothing": SMOOTHING.get(loss, 0.0)}
    if loss in DIVERGED:
        assert build(**arguments) and GridBlock.model_validate(block)
    elif loss == "sft":
        # TRL takes it but does not read it: the grid refuses, because it would train twice the same
        with pytest.raises(ValueError, match="no js_divergence form"):
            GridBlock.model_validate(block)
    else:
        with pytest.raises(ValueError, match="is only supported for"):
            build(**arguments)
        with pytest.raises(ValueError, match="no js_divergence form"):
            GridBlock.model_validate(block)


def test_arguments_that_the_trial_does_not_set_are_left_to_trl():
    assert trl_arguments(trial("sigmoid+sft")) == {
        "loss_type": ["sigmoid", "sft"],
        "beta": 0.1,
        "f_divergence_type": "reverse_kl",
        "label_smoothing": 0.0,
        "ld_alpha": None,
    }


def test_alpha_tau_and_weights_are_passed_where_they_are_set():
    case = trial(
        "discopop+sft",
        f_divergence_type="alpha_divergence",
        alpha=0.3,
        discopop_tau=0.1,
        loss_weights=(1.0, 0.5),
    )
    assert (
        trl_arguments(case).items()
        >= {
            "f_alpha_divergence_coef": 0.7,
            "discopop_tau": 0.1,
        }.items()
    )
    assert trl_arguments(case).get("loss_weights") == [1.0, 0.5]


def test_the_canonical_form_of_a_trial_has_the_same_loss(trl_loss: Loss):
    blocks = [
        {"loss_type": ["robust", "sft+sigmoid"], "beta": 0.5},
        {"f_divergence_type": "alpha_divergence", "alpha": [0, 1e-7, 1]},
        {"loss_type": "discopop", "discopop_tau": 0.05, "ld_alpha": 1},
        {"loss_type": "sft+hinge", "loss_weights": [0.5, 2]},
    ]
    for block in blocks:
        grid = GridBlock.model_validate(block)
        for alpha, loss in itertools.product(grid.alpha or (None,), grid.loss_type):
            raw = trial(
                loss,
                beta=grid.beta[0],
                f_divergence_type=grid.f_divergence_type[0],
                alpha=alpha,
                label_smoothing=0.0,
                ld_alpha=grid.ld_alpha,
                discopop_tau=grid.discopop_tau,
                loss_weights=grid.loss_weights,
            )
            canonical = raw.canonical()
            assert canonical in expand([grid], [0])
            assert trl_loss(canonical, Batch(3.0)) == pytest.approx(
                trl_loss(raw, Batch(3.0)), rel=1e-5
            )
