"""What a trial will write, by the shapes in the files, is what peft and transformers write."""

from pathlib import Path

import pytest
from peft import get_peft_model
from safetensors.numpy import load_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from prefsweep.sweeps.spec import LoraSpec, TrainingSpec
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.sizes import has_weights, model_folder, tensor_shapes, trial_size
from prefsweep.workers.train import lora_config


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=100))


def llama() -> PreTrainedModel:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize(
    ("model", "lora"),
    [
        (gpt2(), LoraSpec(r=8, target_modules=("c_attn", "c_proj"))),
        (gpt2(), LoraSpec(r=2)),
        (llama(), LoraSpec(r=4)),
        (llama(), LoraSpec(r=4, target_modules=("q_proj", "v_proj"))),
    ],
)
def test_an_adapter_has_as_many_numbers_as_its_shapes_say(
    model: PreTrainedModel, lora: LoraSpec, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "base")
    size = trial_size(tensor_shapes(tmp_path / "base"), TrainingSpec(lora=lora))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(base, lora_config(lora, base)).save_pretrained(str(tmp_path / "adapter"))
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    num = sum(array.size for array in adapter.values())
    assert num > 0
    assert size.weights_bytes == 4 * num
    assert size.checkpoint_bytes == 4 * num + 2 * 4 * num


def test_all_weights_are_trained_and_saved_in_float32(tmp_path: Path) -> None:
    model = gpt2().bfloat16()
    model.save_pretrained(tmp_path)
    num = sum(parameter.numel() for parameter in model.parameters())
    size = trial_size(tensor_shapes(tmp_path), TrainingSpec())
    assert size.weights_bytes == 4 * num
    assert size.checkpoint_bytes == 4 * num + 8 * num


def test_a_configuration_without_weights_is_not_a_model(tmp_path: Path) -> None:
    gpt2().config.save_pretrained(tmp_path)
    assert model_folder(ModelSource(str(tmp_path))) == tmp_path
    assert not has_weights(tmp_path)
    gpt2().save_pretrained(tmp_path)
    assert has_weights(tmp_path)


def test_a_hub_id_that_is_not_cached_and_a_missing_folder_have_no_files(tmp_path: Path) -> None:
    assert model_folder(ModelSource("nobody/has-this-model")) is None
    assert model_folder(ModelSource(str(tmp_path / "missing"))) is None
