"""Attention over K rows with the same packed layout, in few kernel launches, for groups of trials.

It differs from attention.py in that the heads of all rows are one dimension, the keys and values of
a completion are gathered together with its prompt's, and one autograd function does all gathers and
one collects the outputs. Gradients are summed in another order, so they are equal up to rounding.

Shapes: K rows, H heads (fewer of keys and values with grouped queries), L tokens, D values per
head; G prompts of at most P tokens, C completions of at most S.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from prefsweep.workers.attention import Segments


@dataclass(frozen=True)
class Gathers:
    """Positions of tokens in both attention calls; made once per batch."""

    prompts: torch.Tensor
    """(G x P,), tokens of prompts; 0 in padding."""
    completions: torch.Tensor
    """(C x S,), tokens of completions."""
    past: torch.Tensor
    """(C x (P + S),), tokens that completions attend to."""
    slots: torch.Tensor
    """(L,), position of each token in prompts and completions."""
    mask: torch.Tensor
    """(1, C, S, P + S), True where a completion's position may attend."""
    shape: tuple[int, int, int, int]
    """G, P, C, S."""


def gathers(segments: Segments) -> Gathers:
    """The gathers for a packed layout."""
    size_P, size_S = segments.sizes
    size_G, size_C = len(segments.num_prompt), len(segments.owner)
    tokens = segments.index.clamp(min=0)
    prompts, completions = tokens[: size_G * size_P], tokens[size_G * size_P :]
    past = torch.cat(
        [prompts.view(size_G, size_P)[segments.owner], completions.view(size_C, size_S)], dim=1
    )
    return Gathers(
        prompts=prompts,
        completions=completions,
        past=past.flatten(),
        slots=segments.slots,
        mask=segments.mask.transpose(0, 1),
        shape=(size_G, size_P, size_C, size_S),
    )


def attend(
    at: Gathers, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """(K, H, L, D) queries in, (K, L, H, D) outputs out."""
    num_groups = query.shape[1] // key.shape[1]
    parts = list(_Gather.apply(query, key, value, at))
    if num_groups > 1:  # each key head is used by several query heads
        for number in (2, 3, 4, 5):
            parts[number] = parts[number].repeat_interleave(num_groups, 0)
    query_P, query_S, key_P, value_P, key_S, value_S = parts
    prompts = functional.scaled_dot_product_attention(
        query_P, key_P, value_P, is_causal=True, scale=scale
    )
    completions = functional.scaled_dot_product_attention(
        query_S, key_S, value_S, attn_mask=at.mask, scale=scale
    )
    return _Collect.apply(prompts, completions, at, query.shape[0])


class _Gather(torch.autograd.Function):
    """Queries of prompts and of completions, then keys and values of both: (K x H, parts, ., D)."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, at: Gathers) -> tuple[Any, ...]:
        size_G, size_P, size_C, size_S = at.shape
        ctx.at, ctx.shapes = at, (query.shape, key.shape)

        def take(part_KHLD: torch.Tensor, tokens: torch.Tensor, *sizes: int) -> torch.Tensor:
            return part_KHLD.index_select(2, tokens).view(-1, *sizes, part_KHLD.shape[-1])

        return (
            take(query, at.prompts, size_G, size_P),
            take(query, at.completions, size_C, size_S),
            take(key, at.prompts, size_G, size_P),
            take(value, at.prompts, size_G, size_P),
            take(key, at.past, size_C, size_P + size_S),
            take(value, at.past, size_C, size_P + size_S),
        )

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        at: Gathers = ctx.at
        query_shape, key_shape = ctx.shapes
        query_P, query_S, key_P, value_P, key_S, value_S = grads

        def rows(grad: torch.Tensor, shape: torch.Size) -> torch.Tensor:
            return grad.reshape(*shape[:2], -1, shape[-1])

        def total(own: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
            # no position attends to padding, so its gradient is 0
            grad = own.new_zeros(key_shape)
            grad.index_add_(2, at.prompts, rows(own, key_shape))
            return grad.index_add_(2, at.past, rows(past, key_shape))

        spread = torch.cat([rows(query_P, query_shape), rows(query_S, query_shape)], dim=2)
        return spread.index_select(2, at.slots), total(key_P, key_S), total(value_P, value_S), None


class _Collect(torch.autograd.Function):
    """Outputs of prompts and completions, (K x H, parts, ., D) each -> (K, L, H, D)."""

    @staticmethod
    def forward(ctx: Any, prompts: Any, completions: Any, at: Gathers, num_rows: int) -> Any:
        ctx.at, ctx.shapes = at, (prompts.shape, completions.shape)
        spread = torch.cat([prompts.flatten(1, 2), completions.flatten(1, 2)], dim=1)
        return spread.index_select(1, at.slots).unflatten(0, (num_rows, -1)).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        at: Gathers = ctx.at
        prompts_shape, completions_shape = ctx.shapes
        grad_MLD = grads[0].transpose(1, 2).flatten(0, 1)
        num_prompts, size_D = len(at.prompts), grad_MLD.shape[-1]
        spread = grad_MLD.new_zeros(len(grad_MLD), num_prompts + len(at.completions), size_D)
        spread.index_copy_(1, at.slots, grad_MLD)
        first, second = spread[:, :num_prompts], spread[:, num_prompts:]
        return first.reshape(prompts_shape), second.reshape(completions_shape), None, None
