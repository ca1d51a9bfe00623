"""Attention over packed preference batches: each completion attends to its prompt and to itself.

A packed batch is one row of L tokens (packing.py). A full mask would be L x L and mostly False.
Instead, the row is split into segments (prompts and completions), torch's scaled dot product
attention runs on the segments, and the outputs are collected into the row. Batches that are not
packed are passed to transformers' own sdpa function unchanged.

Shapes: L tokens of the row, H heads, D values per head; G prompts of at most P tokens (without
their last token, with which each completion's segment starts); C completions of at most S tokens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

IMPLEMENTATION = "prefsweep_packed"
"""Name under which `packed_attention` is registered with transformers."""
UNSUPPORTED = ("softcap", "position_bias", "s_aux")
"""Arguments of a model's attention that scaled dot product attention does not support."""


class UnpackableError(Exception):
    """The model's attention has a feature that packing does not reproduce."""


@dataclass(frozen=True)
class Segments:
    """Where the tokens of a packed row are once it is split into segments."""

    index: torch.Tensor
    """(G x P + C x S,), the token at each slot: first of prompts, then of completions; -1 for
    padding, which is at the end of a segment."""
    slots: torch.Tensor
    """(L,), the slot of each token."""
    owner: torch.Tensor
    """(C,), the prompt of each completion."""
    num_prompt: torch.Tensor
    """(G,), number of tokens of each prompt."""
    mask: torch.Tensor
    """(C, 1, S, P + S), True where a completion's position may attend. It identifies the segments
    when it is passed to the model as attention mask."""

    @property
    def sizes(self) -> tuple[int, int]:
        """P and S."""
        num_queries, num_keys = self.mask.shape[-2:]
        return num_keys - num_queries, num_queries


Attend = Callable[..., torch.Tensor]
"""Another attention function for packed batches: (query, key, value, scale) -> (K, L, H, D)."""
_RUNNING: list[Segments] = []
"""The segments of the running batch, in its forward pass, and in its backward pass if activations
are recomputed. transformers passes nothing but the mask to its attention functions."""
_INSTEAD: list[Attend] = []
"""The attention function of the running batch, if it replaces this module's."""


@contextmanager
def segmented(model: Any) -> Iterator[None]:
    """Let the attention of a transformers model run packed batches inside the block."""
    before = model.config._attn_implementation
    AttentionInterface.register(IMPLEMENTATION, packed_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    model.set_attn_implementation(IMPLEMENTATION)
    try:
        yield
    finally:
        _RUNNING.clear()
        _INSTEAD.clear()
        model.set_attn_implementation(before)


def announce(segments: Segments, instead: Attend | None = None) -> torch.Tensor:
    """The attention mask (C, 1, S, P + S) by which `packed_attention` recognizes the packed batch.

    `instead` computes the attention if there are prompts and no sliding window.
    """
    _RUNNING[:] = [segments]
    _INSTEAD[:] = [] if instead is None else [instead]
    return segments.mask


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: (K, H, L, D) queries in, (K, L, H, D) outputs out.

    K rows with the same layout are run as one row of K x H heads. Raises UnpackableError for a
    packed batch if the model passes one of UNSUPPORTED.
    """
    segments = _announced(attention_mask)
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    for name in UNSUPPORTED:
        if kwargs.pop(name, None) is not None:
            raise UnpackableError(f"its attention has {name}")
    kwargs.pop("is_causal", None)
    window = kwargs.pop("sliding_window", None)
    size_P, size_S = segments.sizes
    if _INSTEAD and size_P and window is None and not kwargs.get("dropout"):
        return _INSTEAD[0](query, key, value, kwargs.get("scaling")), None
    cut = len(segments.num_prompt) * size_P

    def attend(parts: list[torch.Tensor], mask: torch.Tensor | None, *, causal: bool) -> Any:
        q, k, v = (part.transpose(1, 2) for part in parts)
        return sdpa_attention_forward(module, q, k, v, mask, is_causal=causal, **kwargs)[0]

    num_rows, num_heads = query.shape[:2]
    spread = [
        _Spread.apply(_as_heads(part), segments.index, segments.slots)
        for part in (query, key, value)
    ]
    own = [part[cut:].unflatten(0, (-1, size_S)) for part in spread]
    if size_P == 0:
        out_MHD = attend(own, segments.mask, causal=False).flatten(0, 1)
    else:
        prompts = [part[:cut].unflatten(0, (-1, size_P)) for part in spread]
        past = [torch.cat([p[segments.owner], o], 1) for p, o in zip(prompts, own, strict=True)]
        mask_CSK, mask_PP = segments.mask, None
        if window is not None:
            mask_CSK = mask_CSK & _near(segments, window)
            offsets = torch.arange(size_P, device=query.device)
            mask_PP = ((offsets[:, None] - offsets).clamp(min=0) < window).tril()[None, None]
        out_GPHD = attend(prompts, mask_PP, causal=mask_PP is None)
        out_CSHD = attend([own[0], *past[1:]], mask_CSK, causal=False)
        out_MHD = torch.cat([out_GPHD.flatten(0, 1), out_CSHD.flatten(0, 1)])
    out_LHD = _Collect.apply(out_MHD, segments.index, segments.slots)
    if num_rows == 1:
        return out_LHD[None], None
    return out_LHD.unflatten(1, (num_rows, num_heads)).transpose(0, 1), None


def _as_heads(part_KHLD: torch.Tensor) -> torch.Tensor:
    """(L, K x H, D)"""
    if len(part_KHLD) == 1:
        return part_KHLD[0].transpose(0, 1)
    return part_KHLD.permute(2, 0, 1, 3).flatten(1, 2)


def _announced(mask: torch.Tensor | None) -> Segments | None:
    """The running segments, if `mask` belongs to them."""
    if mask is None or not _RUNNING or mask.data_ptr() != _RUNNING[0].mask.data_ptr():
        return None
    return _RUNNING[0]


def _near(segments: Segments, window: int) -> torch.Tensor:
    """(C, 1, S, P + S), True where a key is fewer than `window` positions back."""
    size_P, size_S = segments.sizes
    device = segments.mask.device
    start_C1 = segments.num_prompt[segments.owner][:, None]
    own_CS = start_C1 + torch.arange(size_S, device=device)
    keys_CK = torch.cat(
        [torch.arange(size_P, device=device).expand(len(own_CS), -1), own_CS], dim=1
    )
    return (own_CS[:, :, None] - keys_CK[:, None, :] < window)[:, None]


class _Spread(torch.autograd.Function):
    """(L, H, D) -> (M, H, D), slot by slot; padding has the values of some token.

    Every token has one slot, so the gradient is also a gather, not a sum in an undefined order.
    """

    @staticmethod
    def forward(ctx: Any, x_LHD: Any, index_M: Any, slots_L: Any) -> torch.Tensor:
        ctx.save_for_backward(slots_L)
        return x_LHD.index_select(0, index_M.clamp(min=0))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (slots_L,) = ctx.saved_tensors
        return grads[0].index_select(0, slots_L), None, None


class _Collect(torch.autograd.Function):
    """(M, H, D) -> (L, H, D), the inverse of `_Spread`; padding gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x_MHD: Any, index_M: Any, slots_L: Any) -> torch.Tensor:
        ctx.save_for_backward(index_M)
        return x_MHD.index_select(0, slots_L)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (index_M,) = ctx.saved_tensors
        spread_MHD = grads[0].index_select(0, index_M.clamp(min=0))
        return spread_MHD.masked_fill_((index_M < 0)[:, None, None], 0), None, None
