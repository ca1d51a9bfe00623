"""One forward per unique token: preference batches with shared prompts, packed.

In TRL's layout a batch is [chosen; rejected], every row prompt + completion, padded. Pairs of one
prompt repeat the prompt, and often completions as well. Here each prompt is laid down once, and
each distinct completion once behind it:

    row       p1 p2 p3 | p4 a1 a2 | p4 b1 b2 b3 | next prompt ... | padding
    position   0  1  2    3  4  5    3  4  5  6
    predicts   -  -  -   a1 a2 a3   b1 b2 b3 b4

A segment starts with the last prompt token, because that position predicts the completion's first
token, and lacks the completion's last token, which predicts nothing. It sees its prompt and itself.
The per-token outputs are gathered back into TRL's layout, so the loss and its gradients are TRL's.

Shapes: B rows of TRL's batch (both halves), T its length; R packed rows of length L.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

Ids = tuple[int, ...]
IGNORED = -100
"""Label of a position that predicts nothing that counts."""
PREFIX = "packed_"
OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")


@dataclass(frozen=True)
class PackedBatch:
    """The plan of one batch."""

    input_ids: torch.Tensor
    """(R, L)"""
    position_ids: torch.Tensor
    """(R, L)"""
    attention_mask: torch.Tensor
    """(R, 1, L, L), True where row position i may look at j."""
    shift_labels: torch.Tensor
    """(R, L), the token that each position predicts, IGNORED where none."""
    index: torch.Tensor
    """(B, T - 1), where in the flattened rows TRL's position is; -1 outside completions."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """The plan as items of a collated batch."""
        return {PREFIX + name: value for name, value in vars(self).items()}


@dataclass(frozen=True)
class _Group:
    """One prompt with its distinct completions."""

    prompt_ids: Ids
    completions: dict[Ids, None]

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) - 1 + sum(len(ids) for ids in self.completions)


def pack(sequences: Sequence[tuple[Ids, Ids]], length: int, pad_token_id: int) -> PackedBatch:
    """The plan for TRL rows (prompt_ids, completion_ids), padded to `length` = T.

    Prompts share rows first-fit; a row is as long as the longest prompt group needs.
    """
    groups: dict[Ids, _Group] = {}
    for prompt_ids, completion_ids in sequences:
        group = groups.setdefault(prompt_ids, _Group(prompt_ids, {}))
        if completion_ids:
            group.completions.setdefault(completion_ids)
    rows = _fill_rows(list(groups.values()))
    width = max(sum(group.num_tokens for group in row) for row in rows)
    shape = (len(rows), width)
    plan = PackedBatch(
        input_ids=torch.full(shape, pad_token_id),
        position_ids=torch.zeros(shape, dtype=torch.long),
        attention_mask=torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1, 1),
        shift_labels=torch.full(shape, IGNORED),
        index=torch.full((len(sequences), length - 1), -1),
    )
    starts: dict[tuple[Ids, Ids], int] = {}
    for number, row in enumerate(rows):
        start = 0
        for group in row:
            for completion_ids, offset in _lay_down(plan, number, start, group).items():
                starts[group.prompt_ids, completion_ids] = number * width + offset
            start += group.num_tokens
    for row, (prompt_ids, completion_ids) in enumerate(sequences):
        if completion_ids:
            begin, first = starts[prompt_ids, completion_ids], len(prompt_ids) - 1
            span = torch.arange(len(completion_ids))
            plan.index[row, first + span] = begin + span
    return plan


class PackedModel:
    """Stands for the model that TRL's loss calls: runs the packed rows, answers in TRL's layout."""

    def __init__(self, model: Any, plan: PackedBatch) -> None:
        self._model, self._plan = model, plan

    def __call__(self, **kwargs: Any) -> SimpleNamespace:
        """Per-token outputs (B, T - 1) of TRL's fused LM head; `kwargs` are those of TRL's call."""
        plan = self._plan
        outputs = self._model(
            input_ids=plan.input_ids,
            attention_mask=attention_mask_for(self._model, plan.attention_mask),
            position_ids=plan.position_ids,
            shift_labels=plan.shift_labels,
            fused_lm_head=True,
            use_cache=False,
        )
        return SimpleNamespace(
            **{name: unpack(getattr(outputs, name), plan.index) for name in OUTPUTS}
        )


def unpack(values_RL: torch.Tensor, index_BT: torch.Tensor) -> torch.Tensor:
    """Packed per-token values in TRL's layout, 0 outside completions; gradients flow through."""
    picked_BT = values_RL.reshape(-1)[index_BT.clamp(min=0)]
    return picked_BT.masked_fill(index_BT < 0, 0)


def attention_mask_for(model: Any, mask_RLL: torch.Tensor) -> torch.Tensor:
    """The mask as the model's attention reads it: boolean for sdpa, added to scores for eager."""
    if model.config._attn_implementation != "eager":
        return mask_RLL
    dtype = next(model.parameters()).dtype
    blocked = torch.zeros_like(mask_RLL, dtype=dtype)
    return blocked.masked_fill(~mask_RLL, torch.finfo(dtype).min)


def take_plan(inputs: dict[str, Any]) -> PackedBatch | None:
    """The plan in a collated batch, removed from it; None if the batch has none."""
    names = [name for name in inputs if name.startswith(PREFIX)]
    if not names:
        return None
    return PackedBatch(**{name.removeprefix(PREFIX): inputs.pop(name) for name in names})


def _fill_rows(groups: list[_Group]) -> list[list[_Group]]:
    """Groups in rows of at most the longest group's tokens: first fit, longest first."""
    limit = max(group.num_tokens for group in groups)
    rows: list[list[_Group]] = []
    used: list[int] = []
    for group in sorted(groups, key=lambda g: -g.num_tokens):
        fitting = (i for i, tokens in enumerate(used) if tokens + group.num_tokens <= limit)
        row = next(fitting, None)
        if row is None:
            rows.append([group])
            used.append(group.num_tokens)
        else:
            rows[row].append(group)
            used[row] += group.num_tokens
    return rows


def _lay_down(plan: PackedBatch, row: int, start: int, group: _Group) -> dict[Ids, int]:
    """Write a group into a row from `start`; the first position of each completion's segment."""
    num_prompt = len(group.prompt_ids) - 1
    prompt = slice(start, start + num_prompt)
    plan.input_ids[row, prompt] = torch.tensor(group.prompt_ids[:-1], dtype=torch.long)
    plan.position_ids[row, prompt] = torch.arange(num_prompt)
    mask_LL = plan.attention_mask[row, 0]
    mask_LL[prompt, prompt] = _causal(num_prompt)
    begin, offsets = prompt.stop, {}
    for completion_ids in group.completions:
        size = len(completion_ids)
        segment = slice(begin, begin + size)
        ids = (group.prompt_ids[-1], *completion_ids[:-1])
        plan.input_ids[row, segment] = torch.tensor(ids)
        plan.position_ids[row, segment] = torch.arange(num_prompt, num_prompt + size)
        plan.shift_labels[row, segment] = torch.tensor(completion_ids)
        mask_LL[segment, prompt] = True
        mask_LL[segment, segment] = _causal(size)
        offsets[completion_ids] = begin
        begin += size
    return offsets


def _causal(size: int) -> torch.Tensor:
    return torch.ones(size, size, dtype=torch.bool).tril()
