"""Loads models and tokenizers (transformers, peft). Nothing is cached here."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import GELUTanh, NewGELUActivation

from prefsweep.sweeps.errors import ModelError
from prefsweep.workers.locations import ModelSource


def device() -> torch.device:
    """The device of this process: its one GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_policy(source: ModelSource, on: str | None = None) -> PreTrainedModel:
    """The causal language model in evaluation mode, on device `on` or else this process's device.

    GPT-2's activation is replaced by torch's, which reads the values once (equal to 3e-7). Raises
    ModelError.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.path,
            revision=source.revision or "main",
            trust_remote_code=source.trust_remote_code,
            dtype=getattr(torch, source.dtype),
            **_gguf(source),
            **_without_padding(source),
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"policy {source.path}: {error}") from error
    _check_finite(model, f"policy {source.path}")
    _fuse_activations(model)
    return model.to(on or device()).eval()  # pyright: ignore[reportArgumentType]


def _fuse_activations(model: PreTrainedModel) -> None:
    """Replace GPT-2's tanh GELU, which transformers computes in eight operations (three times
    slower on a CPU)."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, GELUTanh())


def _check_finite(model: PreTrainedModel, name: str) -> None:
    """Raises ModelError for NaN or infinity in the weights, even if few inputs would use them."""
    for key, weights in model.named_parameters():
        low, high = torch.aminmax(weights.detach()) if weights.numel() else (weights, weights)
        if weights.numel() and not (torch.isfinite(low) and torch.isfinite(high)):
            rows = weights.detach().reshape(len(weights) if weights.dim() else 1, -1)
            bad = (~torch.isfinite(rows)).any(1).nonzero().flatten().tolist()
            raise ModelError(
                f"{name}: the weights {key} are not finite in {len(bad)} of {len(rows)} rows, the "
                f"first is row {bad[0]}; download or train the model again"
            )


def save_policy(model: PreTrainedModel, folder: Path) -> None:
    """Save as safetensors; weights from a GGUF file are saved unquantized, as loaded."""
    if getattr(model, "hf_quantizer", None) is not None and _is_gguf(model):
        model.hf_quantizer = None  # pyright: ignore
        del model.config.quantization_config  # pyright: ignore
    model.save_pretrained(folder)


def _is_gguf(model: PreTrainedModel) -> bool:
    config = getattr(model.config, "quantization_config", None)
    return getattr(config, "quant_method", None) == "gguf"


def load_trained(
    source: ModelSource,
    weights_dir: Path,
    load_base: Callable[[], PreTrainedModel] | None = None,
) -> PreTrainedModel | PeftModel:
    """A trial's policy: the adapter in `weights_dir` on its base, or the full model there.

    `load_base` returns the base, if it is not to be read from `source`.
    """
    if (weights_dir / "adapter_config.json").is_file():
        base = load_policy(source) if load_base is None else load_base()
        adapted = PeftModel.from_pretrained(base, str(weights_dir))
        return adapted.to(device()).eval()
    return load_policy(ModelSource(path=str(weights_dir)))  # float32, as it was trained


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The policy's tokenizer with a pad token, padding on the left.

    A pad token without a row in the model's embedding is replaced by the end-of-text token, because
    padding is looked up, although it is masked. Raises ModelError.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.path,
            revision=source.revision or "main",
            trust_remote_code=source.trust_remote_code,
            padding_side="left",
            **_gguf(source),
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"tokenizer of {source.path}: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"tokenizer of {source.path} has no end-of-text token; DPO needs one")
    rows = vocabulary_size(source)
    if rows is not None and tokenizer.eos_token_id >= rows:
        raise ModelError(
            f"tokenizer of {source.path}: its end-of-text token {tokenizer.eos_token} has the id "
            f"{tokenizer.eos_token_id}, but the model has {rows} embeddings. Resize them "
            "(model.resize_token_embeddings(len(tokenizer))), train the new rows and save the model"
        )
    pad = tokenizer.pad_token_id
    if pad is None or (rows is not None and pad >= rows):
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_ids(ids: Iterable[int], rows: int | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError for a token ID that has no row in the model's embedding."""
    largest = max(ids, default=0)
    if rows is not None and largest >= rows:
        raise ModelError(
            f"the token {tokenizer.convert_ids_to_tokens(largest)} in the texts has the id "
            f"{largest}, but the model has {rows} embeddings: the tokenizer of "
            f"{tokenizer.name_or_path} was extended and the model was not. Resize the model "
            "(model.resize_token_embeddings(len(tokenizer))) and train the new rows, or take the "
            "tokenizer that belongs to it"
        )


def vocabulary_size(source: ModelSource) -> int | None:
    """Number of rows of the model's embedding; None if its config does not contain it."""
    return getattr(_config(source).get_text_config(), "vocab_size", None)


def context_length(source: ModelSource) -> int | None:
    """The model's maximum input length in tokens; None if its config does not contain it."""
    config = _config(source)
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def load_classifier(source: ModelSource) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier on this process's device, and its tokenizer. Raises ModelError."""
    arguments = {
        "revision": source.revision or "main",
        "trust_remote_code": source.trust_remote_code,
    }
    try:
        model = AutoModelForSequenceClassification.from_pretrained(source.path, **arguments)
        tokenizer = AutoTokenizer.from_pretrained(source.path, **arguments)
    except (OSError, ValueError) as error:
        raise ModelError(f"reward classifier {source.path}: {error}") from error
    _check_finite(model, f"reward classifier {source.path}")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(device()).eval(), tokenizer  # pyright: ignore[reportArgumentType]


def _config(source: ModelSource) -> Any:
    try:
        return AutoConfig.from_pretrained(
            source.path,
            revision=source.revision or "main",
            trust_remote_code=source.trust_remote_code,
            **_gguf(source),
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"configuration of {source.path}: {error}") from error


def _without_padding(source: ModelSource) -> dict[str, None]:
    """Drops a padding ID without a row in the embedding, which torch would refuse to build."""
    if source.gguf_file is not None:
        return {}
    config = _config(source).get_text_config()
    pad, rows = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    return {"pad_token_id": None} if pad is not None and rows is not None and pad >= rows else {}


def _gguf(source: ModelSource) -> dict[str, str]:
    return {} if source.gguf_file is None else {"gguf_file": source.gguf_file}
