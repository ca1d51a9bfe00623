"""The GGUF path, on a tiny file written here; activations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import GELUTanh

from prefsweep.sweeps.errors import ModelError
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_policy, load_tokenizer, save_policy

gguf = pytest.importorskip("gguf")


def write_tiny_gguf(path: Path, size: int = 32, vocab: int = 64) -> None:
    """A one-layer Llama with random weights."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(size)
    writer.add_block_count(1)
    writer.add_feed_forward_length(size)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(size // 2)
    writer.add_vocab_size(vocab)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (vocab, size), "output": (vocab, size)}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        shapes[f"blk.0.{name}"] = (size, size)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        shapes[name] = (size,)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_weights_are_saved_in_full_and_give_the_same_values(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    model = load_policy(ModelSource(str(tmp_path), gguf_file="tiny.gguf"))
    save_policy(model, tmp_path / "saved")
    again = load_policy(ModelSource(str(tmp_path / "saved")))
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)


def test_a_folder_without_a_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=str(tmp_path)):
        load_policy(ModelSource(str(tmp_path)))
    with pytest.raises(ModelError, match="tokenizer of"):
        load_tokenizer(ModelSource(str(tmp_path)))


def test_gpt2s_activation_is_fused_and_gives_what_transformers_gives(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=32, vocab_size=64)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    ours = load_policy(ModelSource(path=str(tmp_path)), on="cpu")
    stock = GPT2LMHeadModel.from_pretrained(tmp_path)
    kinds = {type(block.mlp.act) for block in ours.transformer.h}  # pyright: ignore
    assert kinds == {GELUTanh}
    ids = torch.randint(0, 64, (3, 16))
    for model in (ours, stock):
        model(input_ids=ids, labels=ids).loss.backward()
    theirs = dict(stock.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-5, atol=1e-7)
    save_policy(ours, tmp_path / "saved")
    saved = GPT2Config.from_pretrained(tmp_path / "saved")
    assert saved.activation_function == config.activation_function == "gelu_new"
