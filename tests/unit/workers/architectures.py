"""Tiny random models of the architectures that people run DPO on, with the project's tokenizer."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from prefsweep.workers.builtin import write_base_model
from prefsweep.workers.locations import ModelSource

VOCAB_SIZE = 1149
"""Of the built-in tokenizer."""
IDS = {"vocab_size": VOCAB_SIZE, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
SMALL = {**IDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {
    **SMALL,
    "intermediate_size": 32,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
OPT = {**SMALL, "ffn_dim": 32, "max_position_embeddings": 64, "word_embed_proj_dim": 16}
BLOOM = {**IDS, "hidden_size": 16, "n_layer": 2, "n_head": 2}
FALCON = {**SMALL, "alibi": True, "new_decoder_architecture": False}
MOE = {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 16}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bloom": BLOOM,
    "falcon": FALCON,
    "gemma2": {**LLAMA, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "gemma3_text": {**LLAMA, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "gpt_neox": {**SMALL, "intermediate_size": 32, "max_position_embeddings": 64},
    "granite": LLAMA,
    "llama": LLAMA,
    "mamba": {**IDS, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "mistral": {**LLAMA, "sliding_window": 4},
    "mixtral": {**LLAMA, "num_local_experts": 4, "sliding_window": 4},
    "olmo2": LLAMA,
    "opt": {**OPT, "dropout": 0.0},
    "phi3": LLAMA,
    "qwen2_moe": {**LLAMA, **MOE, "num_experts": 4, "num_experts_per_tok": 2},
    "qwen3": LLAMA,
    "rwkv": {**IDS, "hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16},
    "smollm3": LLAMA,
}


def tiny(name: str, **fields: Any) -> Any:
    """A model of an architecture, its weights large enough that every part of it matters."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**ARCHITECTURES.get(name, LLAMA), **fields})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return model.eval()


def saved(model: Any, folder: Path) -> ModelSource:
    """The model in a folder, with a tokenizer of VOCAB_SIZE tokens."""
    model.save_pretrained(folder)
    tokenizer = _tokenizer(folder.parent)
    assert len(tokenizer) == VOCAB_SIZE
    tokenizer.save_pretrained(folder)
    return ModelSource(path=str(folder))


@cache
def _tokenizer(folder: Path) -> Any:
    write_base_model("tiny-gpt2", folder / "builtin", 0)
    return AutoTokenizer.from_pretrained(folder / "builtin")
