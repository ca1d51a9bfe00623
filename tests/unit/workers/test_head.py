"""The head of packed batches against log_softmax over all logits, values and gradients."""

from typing import Any

import pytest
import torch

from prefsweep.workers import head
from prefsweep.workers.head import is_plain_head, token_outputs

NUM_POSITIONS, SIZE, NUM_TOKENS = 7, 5, 11


def inputs(bias: bool) -> tuple[torch.Tensor, torch.nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    linear = torch.nn.Linear(SIZE, NUM_TOKENS, bias=bias)
    hidden = torch.randn(NUM_POSITIONS, SIZE, requires_grad=True)
    return hidden, linear, torch.randint(NUM_TOKENS, (NUM_POSITIONS,))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trains", ["hidden", "hidden and head"])
@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("kept", [0, 2**28])
def test_values_and_gradients_are_those_of_the_full_logits(
    monkeypatch: pytest.MonkeyPatch, bias: bool, trains: str, rows: int, kept: int
) -> None:
    monkeypatch.setattr(head, "CHUNK_VALUES", rows * NUM_TOKENS)
    monkeypatch.setattr(head, "KEPT_VALUES", kept)
    hidden, linear, labels = inputs(bias)
    linear.requires_grad_(trains != "hidden")
    logits = linear(hidden)
    logps = logits.log_softmax(-1)
    expected = logps.gather(1, labels[:, None])[:, 0]
    outputs = token_outputs(hidden, linear, labels)
    assert torch.allclose(outputs.log_probs, expected, atol=1e-6)
    assert torch.allclose(outputs.entropy, -(logps.exp() * logps).sum(-1), atol=1e-6)
    assert torch.allclose(outputs.mean_logits, logits.mean(-1), atol=1e-6)
    assert torch.equal(outputs.is_top1, logits.argmax(-1) == labels)
    trained = [hidden, *(p for p in linear.parameters() if p.requires_grad)]
    weights = torch.linspace(-1, 1, NUM_POSITIONS)
    theirs = torch.autograd.grad((expected * weights).sum(), trained)
    ours = torch.autograd.grad((outputs.log_probs * weights).sum(), trained)
    for actual, right in zip(ours, theirs, strict=True):
        assert torch.allclose(actual, right, atol=1e-6)


def test_half_precision_gives_fp32_outputs_near_those_of_fp32() -> None:
    hidden, linear, labels = inputs(bias=False)
    expected = token_outputs(hidden, linear, labels).log_probs
    half = token_outputs(hidden.bfloat16(), linear.bfloat16(), labels).log_probs
    assert half.dtype == torch.float32
    assert torch.allclose(half, expected, atol=0.05)


def test_heads_whose_logits_are_more_than_a_product_are_left_to_trl() -> None:
    from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config

    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "head_dim": 4,
    }
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 16}
    capped = Gemma2Config(**sizes, **heads, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    plain = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16)
    assert not is_plain_head(AutoModelForCausalLM.from_config(capped))
    assert is_plain_head(AutoModelForCausalLM.from_config(plain))
