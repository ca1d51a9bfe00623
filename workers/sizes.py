"""The size of a model, from its files: bytes on disk, and tensor shapes from safetensors headers.

From these follow the bytes that a trial of the model writes. No weights are loaded, nothing is
downloaded, and torch is not needed. Formats without shapes in a header (.bin, GGUF) only have a
size on disk.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from prefsweep.sweeps.spec import TrainingSpec
from prefsweep.workers.locations import ModelSource

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
"""Files in which `from_pretrained` looks for a model's weights; one is enough."""
TRAINED_BYTES = 4
"""Bytes per trained number: weights and adapters are trained and saved in float32."""
OPTIMIZER_COPIES = 2
"""Float32 numbers that AdamW stores per trained number."""

_NOT_ADAPTED = ("embed", "wte", "wpe", "shared", "lm_head", "score", "classifier")
"""Parts of names of matrices that `all-linear` does not adapt: embeddings and output layers."""


@dataclass(frozen=True)
class TrialSize:
    """Bytes that a trial writes: for its result, and for each checkpoint."""

    weights_bytes: int
    checkpoint_bytes: int


def model_folder(source: ModelSource) -> Path | None:
    """The model's folder on this machine; None for a hub ID that is not cached."""
    if Path(source.path).is_dir():
        return Path(source.path)
    if source.path.startswith(("/", ".", "~")):
        return None
    cached = try_to_load_from_cache(source.path, "config.json", revision=source.revision)
    return Path(cached).parent if isinstance(cached, str) else None


def has_weights(folder: Path) -> bool:
    """Whether a model's folder contains weights, not only a configuration."""
    return any((folder / name).exists() for name in WEIGHT_FILES) or any(folder.glob("*.gguf"))


def disk_bytes(folder: Path) -> int:
    """Total size in bytes of the files in a model's folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Shapes of a model's tensors by name; empty if its format has no shapes in a header."""
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                shapes[name] = tensors.get_slice(name).get_shape()
    return shapes


def trial_size(shapes: dict[str, list[int]], training: TrainingSpec) -> TrialSize:
    """The size of a trial: an adapter's two matrices per adapted matrix, or all weights."""
    if training.lora is None:
        num = sum(math.prod(shape) for shape in shapes.values())
    else:
        num = training.lora.r * sum(
            sum(shape)
            for name, shape in shapes.items()
            if _is_adapted(name, shape, training.lora.target_modules)
        )
    weights = num * TRAINED_BYTES
    optimizer = weights * OPTIMIZER_COPIES
    return TrialSize(weights, weights + optimizer)


def _is_adapted(name: str, shape: list[int], target_modules: tuple[str, ...] | str) -> bool:
    module, _, kind = name.rpartition(".")
    if kind != "weight" or len(shape) != 2:
        return False
    if isinstance(target_modules, str):
        return not any(part in module for part in _NOT_ADAPTED)
    return any(module == target or module.endswith(f".{target}") for target in target_modules)
