"""One forward per unique token: preference batches with shared prompts, packed.

In TRL's layout, a batch is [chosen; rejected], and every row is prompt + completion, padded. Pairs
of one prompt repeat the prompt, and often completions. Here, each prompt occurs once, followed by
each of its distinct completions once, all in one row without padding:

    row       p1 p2 p3 | p4 a1 a2 | p4 b1 b2 b3 | next prompt ...
    position   0  1  2    3  4  5    3  4  5  6
    predicts   -  -  -   a1 a2 a3   b1 b2 b3 b4

A segment starts with the last prompt token, because that position predicts the completion's first
token, and does not contain the completion's last token, which predicts nothing. It attends to its
prompt and itself (attention.py); the head only computes positions that predict a token (head.py).
The per-token outputs are gathered into TRL's layout, so the loss and its gradients are TRL's.

Shapes: B rows of TRL's batch (both halves), T its length; L tokens of the packed row, of which N
predict; G prompts of at most P tokens, C completions of at most S (attention.py).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from prefsweep.workers.attention import Segments, announce
from prefsweep.workers.head import TokenOutputs, runs_here, token_outputs

Ids = tuple[int, ...]
IGNORED = -100
"""Label of a position that does not predict a completion's token."""
PREFIX = "packed_"
OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")


@dataclass(frozen=True)
class PackedBatch:
    """The layout of one batch."""

    input_ids: torch.Tensor
    """(1, L)"""
    position_ids: torch.Tensor
    """(1, L)"""
    predicting: torch.Tensor
    """(N,), the row's positions that predict a completion's token."""
    labels: torch.Tensor
    """(N,), the predicted tokens."""
    gather: torch.Tensor
    """(B, T - 1), which of the N is at TRL's position; -1 outside completions."""
    index: torch.Tensor
    slots: torch.Tensor
    owner: torch.Tensor
    num_prompt: torch.Tensor
    mask: torch.Tensor
    """`index` to `mask` are as in `Segments`."""

    @property
    def segments(self) -> Segments:
        """The segments for attention."""
        names = [field.name for field in fields(Segments)]
        return Segments(**{name: getattr(self, name) for name in names})

    def to(self, device: torch.device) -> "PackedBatch":
        """The layout on a device."""
        return PackedBatch(**{name: value.to(device) for name, value in vars(self).items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        """The layout as items of a collated batch."""
        return {PREFIX + name: value for name, value in vars(self).items()}


def pack(sequences: Sequence[tuple[Ids, Ids]], length: int) -> PackedBatch:
    """The layout for TRL rows (prompt_ids, completion_ids), padded to `length` = T."""
    groups: dict[Ids, dict[Ids, None]] = {}
    for prompt_ids, completion_ids in sequences:
        completions = groups.setdefault(prompt_ids, {})
        if completion_ids:
            completions.setdefault(completion_ids)
    tokens: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    predicting: list[int] = []
    prompts: list[tuple[int, int]] = []
    segments: list[tuple[int, int]] = []
    owner: list[int] = []
    first: dict[tuple[Ids, Ids], int] = {}
    """Completion -> index of its first token among the N."""
    for prompt_ids, completions in groups.items():
        num_prompt = len(prompt_ids) - 1
        prompts.append((len(tokens), num_prompt))
        tokens += prompt_ids[:-1]
        positions += range(num_prompt)
        for completion_ids in completions:
            size, begin = len(completion_ids), len(tokens)
            first[prompt_ids, completion_ids] = len(labels)
            segments.append((begin, size))
            owner.append(len(prompts) - 1)
            tokens += (prompt_ids[-1], *completion_ids[:-1])
            positions += range(num_prompt, num_prompt + size)
            predicting += range(begin, begin + size)
            labels += completion_ids
    gather = np.full((len(sequences), length - 1), -1)
    for row, (prompt_ids, completion_ids) in enumerate(sequences):
        if completion_ids:
            start, size = len(prompt_ids) - 1, len(completion_ids)
            begin = first[prompt_ids, completion_ids]
            gather[row, start : start + size] = np.arange(begin, begin + size)
    return PackedBatch(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        predicting=torch.tensor(predicting),
        labels=torch.tensor(labels),
        gather=torch.from_numpy(gather),
        **vars(_segments(prompts, segments, owner, len(tokens))),
    )


def _segments(
    prompts: Sequence[tuple[int, int]],
    completions: Sequence[tuple[int, int]],
    owner: Sequence[int],
    num_tokens: int,
) -> Segments:
    """The segments of prompts and completions, each given as (start in the row, tokens)."""
    prompts_GP, completions_CS = _block(prompts), _block(completions)
    index = np.concatenate([prompts_GP.flatten(), completions_CS.flatten()])
    slots = np.zeros(num_tokens, np.int64)
    slots[index[index >= 0]] = np.flatnonzero(index >= 0)
    (size_P, size_S), num_C = (prompts_GP.shape[1], completions_CS.shape[1]), len(completions)
    mask_CSK = np.empty((num_C, size_S, size_P + size_S), bool)
    mask_CSK[:, :, :size_P] = (prompts_GP >= 0)[list(owner), None, :]
    mask_CSK[:, :, size_P:] = np.tri(size_S, dtype=bool)
    return Segments(
        index=torch.from_numpy(index),
        slots=torch.from_numpy(slots),
        owner=torch.tensor(owner),
        num_prompt=torch.tensor([size for _, size in prompts]),
        mask=torch.from_numpy(mask_CSK[:, None]),
    )


def _block(parts: Sequence[tuple[int, int]]) -> np.ndarray:
    """(parts, longest part): the row's positions of each part, -1 after its end."""
    begins, sizes = np.array(parts).T
    offsets = np.arange(sizes.max())
    return np.where(offsets < sizes[:, None], begins[:, None] + offsets, -1)


def add_packed_head(model: Any) -> None:
    """Let `model`, whose head TRL has fused, return outputs for the positions of a layout.

    `model(..., predicting=(N,), labels_at=(N,))` then returns TokenOutputs; without these
    arguments, forward is unchanged. Like TRL's function, call this before the model is wrapped.
    """
    fused_forward = model.forward

    @functools.wraps(fused_forward)
    def forward(
        *args: Any,
        predicting: torch.Tensor | None = None,
        labels_at: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if predicting is None or labels_at is None:
            return fused_forward(*args, **kwargs)
        if not runs_here(model):
            labels = torch.full_like(kwargs["input_ids"], IGNORED)
            labels[0, predicting] = labels_at
            outputs = fused_forward(*args, shift_labels=labels, fused_lm_head=True, **kwargs)
            return TokenOutputs(*(getattr(outputs, name)[0, predicting] for name in OUTPUTS))
        hidden_1LE = model.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        return token_outputs(hidden_1LE[0, predicting], model.get_output_embeddings(), labels_at)

    model.forward = forward


def packed_outputs(model: Any, plan: PackedBatch) -> dict[str, torch.Tensor]:
    """Per-token outputs (B, T - 1) of the packed row, by OUTPUTS, in the layout of TRL's batch."""
    outputs = model(
        input_ids=plan.input_ids,
        attention_mask=announce(plan.segments),
        position_ids=plan.position_ids,
        predicting=plan.predicting,
        labels_at=plan.labels,
    )
    return {name: unpack(getattr(outputs, name), plan.gather) for name in OUTPUTS}


def unpack(values_N: torch.Tensor, gather_BT: torch.Tensor) -> torch.Tensor:
    """Per-token values in TRL's layout, 0 outside completions; gradients flow through.

    (N,) gives (B, T), and (K, N) gives (K, B, T).
    """
    return values_N[..., gather_BT.clamp(min=0)].masked_fill(gather_BT < 0, 0)


def take_plan(inputs: dict[str, Any]) -> PackedBatch | None:
    """Remove the layout from a collated batch and return it; None if the batch has none."""
    names = [name for name in inputs if name.startswith(PREFIX)]
    if not names:
        return None
    return PackedBatch(**{name.removeprefix(PREFIX): inputs.pop(name) for name in names})
