"""Our fp32 losses and TRL's against float64 closed forms written from the papers."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from prefsweep.sweeps.grid import LOSS_NAMES, GridBlock, TrialSpec, expand
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.losses import trl_arguments
from prefsweep.workers.models import load_policy, load_tokenizer
from prefsweep.workers.objective import batch_loss

from .closed_forms import (
    CASES,
    DIVERGED,
    DIVERGENCES,
    SMOOTHING,
    Batch,
    closed_form,
    collated,
    f_prime,
    trial,
)

# --- TRL's loss -----------------------------------------------------------------------------------

Loss = Callable[[TrialSpec, Batch], float]


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


def our_loss(trial: TrialSpec, batch: Batch) -> float:
    """The loss that trials are trained with, in fp32."""
    inputs, model = collated(batch, trial.ld_alpha)
    outputs = vars(model(labels=inputs["input_ids"]))
    value, _ = batch_loss(trial, trial.beta, outputs, inputs)
    assert value.dtype == torch.float32
    return float(value)


def tempered(trial: TrialSpec, batch: Batch) -> TrialSpec:
    """discopop's exp(-beta d) leaves fp32 at 88: beta so small that beta |d| <= 20."""
    f_x, f_y = f_prime(batch.log_ratios, trial.f_divergence_type, trial.alpha)
    beta = min(trial.beta, 20 / float(np.abs(f_x - f_y).max()))
    return trial.model_copy(update={"beta": beta}) if trial.loss_type == "discopop" else trial


# --- rules ----------------------------------------------------------------------------------------


def name_of(trial: TrialSpec) -> str:
    return f"{trial.loss_type}-{trial.f_divergence_type}-{trial.alpha}-{trial.beta}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_our_loss_and_trls_agree_with_the_papers(case: TrialSpec, trl_loss: Loss):
    for seed, scale in itertools.product(range(3), (0.1, 1.0, 5.0)):
        batch = Batch(scale, seed=seed)
        case = tempered(case, batch)
        for loss in (our_loss, trl_loss):
            assert loss(case, batch) == pytest.approx(closed_form(case, batch), rel=1e-5, abs=1e-6)


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
        for loss in (our_loss, trl_loss):
            assert loss(case, batch) == pytest.approx(closed_form(case, batch), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: "-".join(map(str, d.values())))
@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm", "robust"])
def test_a_policy_that_is_the_reference_has_loss_log_2(loss: str, divergence: dict[str, Any]):
    case = trial(loss, beta=1.0, **divergence)
    assert our_loss(case, Batch(0.0)) == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: "-".join(map(str, d.values())))
def test_swapping_chosen_and_rejected_flips_the_margin(divergence: dict[str, Any]):
    """-log s(m) + log s(-m) = -m, so that the margin can be read from two losses."""
    batch = Batch(1.0, num_pairs=1, seed=1)
    case = trial("sigmoid", **divergence)
    f_x, f_y = f_prime(batch.log_ratios, case.f_divergence_type, case.alpha)
    margin = 0.1 * float((f_x - f_y)[0])
    forward, backward = our_loss(case, batch), our_loss(case, batch.swapped())
    assert abs(margin) > 0.01
    assert backward - forward == pytest.approx(margin, rel=1e-4)


@pytest.mark.parametrize("loss", DIVERGED)
def test_alpha_1_is_forward_kl_and_alpha_0_is_reverse_kl(loss: str):
    def value(kind: str, alpha: float | None = None) -> float:
        case = trial(loss, f_divergence_type=kind, alpha=alpha, beta=1.0)
        return our_loss(case, Batch(2.0))

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


def test_the_canonical_form_of_a_trial_has_the_same_loss():
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
            assert our_loss(canonical, Batch(3.0)) == pytest.approx(
                our_loss(raw, Batch(3.0)), rel=1e-5
            )
