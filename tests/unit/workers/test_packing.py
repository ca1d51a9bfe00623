"""Packed batches: the plan by hand, and the same values and gradients as TRL's padded batch."""

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from prefsweep.workers.attention import UnpackableError, segmented
from prefsweep.workers.packing import (
    IGNORED,
    OUTPUTS,
    add_packed_head,
    pack,
    packed_outputs,
    take_plan,
)

PROMPT, SHORT = (1, 2, 3), (4,)
SEQUENCES = [
    (PROMPT, (5, 6)),
    (PROMPT, (5, 6)),
    (SHORT, (7, 8, 9)),
    (PROMPT, (10,)),
    (PROMPT, (11, 12, 13)),
    (SHORT, (5,)),
]


def test_the_plan_by_hand() -> None:
    plan = pack(SEQUENCES, length=6)
    # 1 2 | 3 5 | 3 | 3 11 12 || 4 7 8 | 4: prompt without its last token, then a segment each
    assert plan.input_ids.tolist() == [[1, 2, 3, 5, 3, 3, 11, 12, 4, 7, 8, 4]]
    assert plan.position_ids.tolist() == [[0, 1, 2, 3, 2, 2, 3, 4, 0, 1, 2, 0]]
    assert plan.predicting.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert plan.labels.tolist() == [5, 6, 10, 11, 12, 13, 7, 8, 9, 5]
    assert plan.gather.tolist() == [
        [-1, -1, 0, 1, -1],
        [-1, -1, 0, 1, -1],
        [6, 7, 8, -1, -1],
        [-1, -1, 2, -1, -1],
        [-1, -1, 3, 4, 5],
        [9, -1, -1, -1, -1],
    ]


def test_the_segments_by_hand() -> None:
    plan = pack(SEQUENCES, length=6)
    prompts, completions = plan.index[:4].reshape(2, 2), plan.index[4:].reshape(5, 3)
    assert prompts.tolist() == [[0, 1], [-1, -1]]
    assert completions.tolist() == [[2, 3, -1], [4, -1, -1], [5, 6, 7], [8, 9, 10], [11, -1, -1]]
    assert plan.owner.tolist() == [0, 0, 0, 1, 1]
    assert plan.num_prompt.tolist() == [2, 0]
    own = [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert plan.mask[2, 0].int().tolist() == [[1, 1, *row] for row in own]
    assert plan.mask[3, 0].int().tolist() == [[0, 0, *row] for row in own]


def test_every_token_has_one_slot() -> None:
    plan = pack(SEQUENCES, 6)
    assert plan.index[plan.slots].tolist() == list(range(plan.input_ids.numel()))


def test_every_position_attends_to_something() -> None:
    """A row of the mask without a True would make the softmax NaN."""
    assert pack(SEQUENCES, 6).mask.any(-1).all()


def test_the_plan_is_taken_out_of_the_batch() -> None:
    plan = pack(SEQUENCES, 6)
    batch: dict[str, Any] = {"input_ids": torch.zeros(1), **plan.tensors()}
    taken = take_plan(batch)
    assert taken is not None and torch.equal(taken.gather, plan.gather)
    assert list(batch) == ["input_ids"]
    assert take_plan(batch) is None


TINY = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
GPT2 = {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
MODELS: dict[str, dict[str, Any]] = {
    "GPT2Config": GPT2,
    "LlamaConfig": TINY,  # SmolLM is a Llama
    "Qwen2Config": TINY,
    "Qwen3Config": TINY | {"head_dim": 8},
    "GemmaConfig": TINY | {"head_dim": 8},
    "GPTNeoXConfig": TINY,  # Pythia
    "MistralConfig": TINY,
    "PhiConfig": TINY,
    "OPTConfig": {
        "vocab_size": 32,
        "hidden_size": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "word_embed_proj_dim": 16,
        "dropout": 0.0,
    },
}


def tiny_model(name: str, attention: str) -> Any:
    torch.manual_seed(0)
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, name)(**MODELS[name], **tokens)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    add_fused_lm_head(model, outputs=OUTPUTS)
    add_packed_head(model)
    return model.eval()


def padded(sequences: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> dict[str, torch.Tensor]:
    """TRL's layout of the sequences."""
    length = max(len(p) + len(c) for p, c in sequences)
    ids, labels, mask = [], [], []
    for prompt, completion in sequences:
        pad = length - len(prompt) - len(completion)
        ids.append([*prompt, *completion, *[0] * pad])
        labels.append([*[IGNORED] * len(prompt), *completion, *[IGNORED] * pad])
        mask.append([1] * (length - pad) + [0] * pad)
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor(labels),
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_the_padded_batch(name: str, attention: str) -> None:
    model = tiny_model(name, attention)
    batch = padded(SEQUENCES)
    stock = model(**batch, fused_lm_head=True, use_cache=False)
    with segmented(model):
        packed = packed_outputs(model, pack(SEQUENCES, batch["input_ids"].shape[1]))
    assert model.config._attn_implementation == attention
    inside = batch["labels"][:, 1:] != IGNORED
    for output in OUTPUTS:
        expected, actual = getattr(stock, output), packed[output]
        assert torch.allclose(actual[inside].float(), expected[inside].float(), atol=1e-5), output
    weights = torch.linspace(-1, 1, len(SEQUENCES))  # a loss that tells the rows apart
    gradients = []
    for log_probs_BT in (stock.log_probs, packed["log_probs"]):
        model.zero_grad()
        (log_probs_BT.sum(1) * weights).sum().backward(retain_graph=True)
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for expected, actual in zip(*gradients, strict=True):
        scale = expected.abs().max().clamp(min=1e-3)
        assert torch.allclose(actual / scale, expected / scale, atol=1e-5)


def test_six_pairs_of_six_completions_take_a_third_of_the_tokens() -> None:
    prompt = tuple(range(1, 21))
    completions = [tuple(range(100 * i, 100 * i + 100)) for i in range(1, 7)]
    ranks = [(0, 3), (0, 4), (0, 5), (1, 5), (2, 5), (3, 5)]
    rows = [(prompt, completions[i]) for half in (0, 1) for i in (pair[half] for pair in ranks)]
    plan = pack(rows, 120)
    assert plan.input_ids.numel() == 19 + 6 * 100
    assert len(rows) * 120 / plan.input_ids.numel() > 2.3


def test_recomputed_activations_give_the_same_gradients() -> None:
    """The segments are still known when the backward pass runs the layers again."""
    gradients = []
    for recomputes in (False, True):
        model = tiny_model("LlamaConfig", "sdpa").train()
        if recomputes:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with segmented(model):
            packed_outputs(model, pack(SEQUENCES, 6))["log_probs"].sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for expected, actual in zip(*gradients, strict=True):
        assert torch.equal(expected, actual)


def test_a_sliding_window_is_kept() -> None:
    """Every other layer of this model sees the last four positions only."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = TINY
    config = transformers.MistralConfig(**sizes, sliding_window=4, pad_token_id=0)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    add_fused_lm_head(model, outputs=OUTPUTS)
    add_packed_head(model)
    rows = [(tuple(range(1, 8)), (9, 10, 11, 12, 13)), (tuple(range(1, 8)), (14, 15))]
    batch = padded(rows)
    stock = model(**batch, fused_lm_head=True, use_cache=False).log_probs
    with segmented(model):
        packed = packed_outputs(model, pack(rows, batch["input_ids"].shape[1]))["log_probs"]
    assert torch.allclose(packed, stock, atol=1e-5)


def test_attention_with_extras_is_refused() -> None:
    sizes: dict[str, Any] = TINY | {"head_dim": 8}
    config = transformers.Gemma2Config(**sizes, pad_token_id=0)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    add_fused_lm_head(model, outputs=OUTPUTS)
    add_packed_head(model)
    with segmented(model), pytest.raises(UnpackableError, match="softcap"):
        packed_outputs(model, pack(SEQUENCES, 6))


@pytest.mark.parametrize("name", MODELS)
def test_forward_passes_without_gradients_give_the_same_values_packed(name: str) -> None:
    from prefsweep.workers.forward import batches, completion_logits, packs_exactly, token_logps

    model = tiny_model(name, "sdpa")
    assert packs_exactly(model, SEQUENCES)
    batch = next(batches(SEQUENCES))
    with torch.no_grad():
        packed = torch.cat(list(completion_logits(model, batch, packed=True)))
        padded_N = torch.cat(list(completion_logits(model, batch, packed=False)))
    assert torch.allclose(packed, padded_N, atol=1e-5)
    logps = token_logps(model, SEQUENCES)
    prompt, completion = SEQUENCES[0]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
    expected = [logits[2, completion[0]].item(), logits[3, completion[1]].item()]
    assert logps[prompt, completion] == pytest.approx(expected, abs=1e-5)
