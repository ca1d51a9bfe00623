"""disable_dropout holds for every form of dropout, or the model is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig

from prefsweep.sweeps.errors import TrialError
from prefsweep.workers.dropout import require_no_noise, without_dropout
from prefsweep.workers.forward import padded_logps
from prefsweep.workers.models import load_policy

from .architectures import saved, tiny
from .training_runs import SPEC, run, trial, weights

SEQUENCES = [((3, 4, 5, 6), (7, 8, 9)), ((10, 11), (12, 13, 14, 15))]
NOISY: dict[str, tuple[str, dict[str, Any]]] = {
    "a function, its rate in the module": ("opt", {"dropout": 0.3}),
    "a function inside the attention": ("llama", {"attention_dropout": 0.3}),
    "a function, its rate in the config": ("falcon", {"attention_dropout": 0.3}),
    "a function of the model's own": ("bloom", {"hidden_dropout": 0.3}),
    "layers that are skipped": ("opt", {"layerdrop": 0.7}),
    "noise on a router": ("mixtral", {"router_jitter_noise": 0.5}),
    "three functions": ("starcoder2", {"embedding_dropout": 0.2, "residual_dropout": 0.2}),
    "modules": ("gpt2", {"n_embd": 16, "n_head": 2, "n_layer": 2, "resid_pdrop": 0.3}),
}


def differ(model: Any) -> bool:
    model.train()
    with torch.no_grad():
        torch.manual_seed(0)
        return not torch.equal(padded_logps(model, SEQUENCES), padded_logps(model, SEQUENCES))


@pytest.mark.parametrize("kind", NOISY)
def test_no_form_of_dropout_is_left_and_all_come_back(kind: str) -> None:
    name, fields = NOISY[kind]
    model = tiny(name, **fields)
    before = model.config.to_dict()
    assert differ(model)
    with without_dropout(model):
        assert not differ(model)
        require_no_noise(model, SEQUENCES)
    assert differ(model)
    assert model.config.to_dict() == before


class Stubborn(torch.nn.Module):
    """A layer with a rate that is written into its code."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(self.inner(x), 0.2, self.training)


def test_noise_that_cannot_be_turned_off_is_refused_with_the_field_to_set() -> None:
    model = tiny("llama")
    model.model.layers[0].mlp = Stubborn(model.model.layers[0].mlp)
    state = torch.random.get_rng_state()
    with without_dropout(model), pytest.raises(TrialError, match=r"Llama.*disable_dropout=false"):
        require_no_noise(model, SEQUENCES)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_trial_of_a_model_with_dropout_is_that_of_the_model_without(tmp_path: Path) -> None:
    """By bits, and the saved config still has its rate."""
    trained = []
    for rate in (0.0, 0.3):
        folder = tmp_path / str(rate)
        source = saved(tiny("opt", dropout=rate), folder / "model")
        run(source, trial(), SPEC.model_copy(update={"max_steps": 2}), folder)
        trained.append(weights(folder))
        assert AutoConfig.from_pretrained(folder / "weights").dropout == rate
        assert load_policy(source).config.dropout == rate
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_dropout_that_is_asked_for_is_left(tmp_path: Path) -> None:
    source = saved(tiny("opt", dropout=0.3), tmp_path / "model")
    losses = []
    for off in (True, False):
        spec = SPEC.model_copy(update={"max_steps": 1, "disable_dropout": off})
        losses.append(run(source, trial(), spec, tmp_path / str(off))[0]["loss"])
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # policy and reference agree: log 2
    assert losses[1] != pytest.approx(losses[0], abs=1e-3)
