"""A decoding loop for transformers' `generate`: one prefill a prompt, ended rows leave the batch.

In: prompts, and the logits processors and stopping criteria that `generate` has prepared. Out: the
new tokens of `copies` rows a prompt. A prompt runs through the model once and its cache is repeated
for its rows. The next tokens are chosen by one of

  Greedy         the highest score
  Draws          a draw from softmax(scores), with random numbers of the row's own: what a row says
                 does not depend on the rows beside it
  DiverseGroups  diverse beam search with one beam a group (Vijayakumar et al., arXiv 1610.02424):
                 the rows of a prompt choose one after the other, each takes the token of highest
                 score minus `penalty` for every earlier one that took it at this step.
                 transformers 5 has no such decoding of its own without code from a hub

Shapes: B prompts, G copies, N rows still in the batch (at first B x G, row b * G + g is copy g of
prompt b), V tokens of the vocabulary, T tokens so far.
"""

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer

from prefsweep.workers.forward import base_model

LEAVE_AT = 0.75
"""Share of live rows below which the others are taken out of the batch."""
CUDA_LOOKS_EVERY = 8
"""Steps between two looks on CUDA at which rows have ended: each waits for the device."""


class Choice(Protocol):
    """How the next tokens are chosen."""

    @property
    def together(self) -> int:
        """Rows that need one another and so leave together: 1, or the copies of a prompt."""
        ...

    def __call__(
        self, scores_NV: torch.Tensor, rows_N: torch.Tensor, live_N: torch.Tensor, step: int
    ) -> torch.Tensor:
        """The token (N,) of every row; `rows_N` are the rows' first numbers."""
        ...


@dataclass(frozen=True)
class Decoding:
    """A `custom_generate` for `model.generate`; the config's num_return_sequences stays 1."""

    copies: int
    """Rows of each prompt."""
    choice: Choice
    limits: Sequence[int]
    """Most new tokens of each prompt."""

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> torch.Tensor:
        """New tokens (B x G, longest limit), padded behind a row's end."""
        device, pad = input_ids.device, generation_config.pad_token_id
        keeps = keeps_cache(model)
        limits_N = torch.tensor(self.limits, device=device).repeat_interleave(self.copies)
        new_tokens = torch.full(
            (len(limits_N), max(self.limits)), pad, dtype=torch.long, device=device
        )
        logits_BV, state = _next(model, input_ids, model_kwargs if keeps else {}, None)
        logits_NV = logits_BV.repeat_interleave(self.copies, 0)
        prompts_N = torch.arange(len(input_ids), device=device).repeat_interleave(self.copies)
        state = _rows(state, logits_processor, prompts_N)
        ids_NT = input_ids.repeat_interleave(self.copies, 0)
        rows_N = torch.arange(len(limits_N), device=device)
        live_N = torch.ones(len(limits_N), dtype=torch.bool, device=device)
        looks_every = CUDA_LOOKS_EVERY if device.type == "cuda" else 1
        for step in range(new_tokens.shape[1]):
            scores_NV = logits_processor(ids_NT, logits_NV.to(copy=True, dtype=torch.float32))  # pyright: ignore[reportArgumentType]
            tokens_N = self.choice(scores_NV, rows_N, live_N, step)
            tokens_N = torch.where(live_N, tokens_N, pad)
            new_tokens[rows_N, step] = tokens_N
            ids_NT = torch.cat([ids_NT, tokens_N[:, None]], dim=-1)
            live_N = live_N & ~stopping_criteria(ids_NT, None) & (limits_N[rows_N] > step + 1)  # pyright: ignore
            if (step + 1) % looks_every == 0:
                if not live_N.any():
                    break
                stays_N = live_N.unflatten(0, (-1, self.choice.together)).any(-1)
                stays_N = stays_N.repeat_interleave(self.choice.together)
                if stays_N.float().mean() <= LEAVE_AT:
                    kept = stays_N.nonzero()[:, 0]
                    state = _rows(state, logits_processor, kept)
                    ids_NT, rows_N, live_N = ids_NT[kept], rows_N[kept], live_N[kept]
            logits_NV, state = _next(model, ids_NT, state, 1)
        return new_tokens


@dataclass(frozen=True)
class Greedy:
    """The token of the highest score."""

    together: int = 1

    def __call__(
        self, scores_NV: torch.Tensor, rows_N: torch.Tensor, live_N: torch.Tensor, step: int
    ) -> torch.Tensor:
        """The tokens."""
        return scores_NV.argmax(-1)


@dataclass(frozen=True)
class Draws:
    """Draws from softmax(scores): the token at which its cumulative sum exceeds a random number."""

    uniforms: torch.Tensor
    """(B x G, steps), in [0, 1), float64."""
    together: int = 1

    def __call__(
        self, scores_NV: torch.Tensor, rows_N: torch.Tensor, live_N: torch.Tensor, step: int
    ) -> torch.Tensor:
        """The tokens; one of probability 0 is never drawn."""
        sums_NV = scores_NV.softmax(-1).cumsum(-1, dtype=torch.float64)
        at_N1 = self.uniforms[rows_N, step, None] * sums_NV[:, -1:]
        return torch.searchsorted(sums_NV, at_N1, right=True)[:, 0]


@dataclass(frozen=True)
class DiverseGroups:
    """Rows that ended leave no penalty behind. With one group, or no penalty, it is greedy search.

    Scores are logits: log-probabilities are lower by one number a row, and so choose the same.
    """

    together: int
    """Groups of a prompt."""
    penalty: float

    def __call__(
        self, scores_NV: torch.Tensor, rows_N: torch.Tensor, live_N: torch.Tensor, step: int
    ) -> torch.Tensor:
        """The tokens."""
        scores_BGV = scores_NV.unflatten(0, (-1, self.together))
        live_BG = live_N.unflatten(0, (-1, self.together)).float()
        counts_BV = torch.zeros_like(scores_BGV[:, 0])
        tokens_B: list[torch.Tensor] = []
        for group in range(self.together):
            chosen_B = (scores_BGV[:, group] - self.penalty * counts_BV).argmax(-1)
            counts_BV.scatter_add_(1, chosen_B[:, None], live_BG[:, group, None])
            tokens_B.append(chosen_B)
        return torch.stack(tokens_B, dim=1).flatten()


def uniforms(seed: int, keys: Sequence[str], copies: int, steps: int) -> torch.Tensor:
    """Random numbers for `Draws`, (keys x copies, steps): each row's by seed, key and copy."""
    generator = torch.Generator()
    rows: list[torch.Tensor] = []
    for key in keys:
        for copy in range(copies):
            digest = hashlib.sha256(f"{seed}:{key}:{copy}".encode()).digest()
            generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            rows.append(torch.rand(steps, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


def roomy_cache(model: Any) -> Cache:
    """A cache whose layers grow by doubling; transformers' copy all they hold at every token."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_RoomyLayer() if type(each) is DynamicLayer else each for each in cache.layers]
    return cache


class _RoomyLayer(DynamicLayer):
    """`keys` and `values` are the filled part of buffers with room for more."""

    _buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (rows, heads, tokens, size) and return all so far."""
        begin, size = self.get_seq_length(), key_states.shape[-2]
        if begin == 0:
            return super().update(key_states, value_states, *args, **kwargs)
        assert self.keys is not None and self.values is not None
        fits = self._buffers is not None and begin + size <= self._buffers[0].shape[-2]
        # rows that were taken out or repeated made new tensors
        if not fits or self.keys.data_ptr() != self._buffers[0].data_ptr():  # pyright: ignore
            self._buffers = (_with_room(self.keys, size), _with_room(self.values, size))
        keys, values = self._buffers  # pyright: ignore[reportGeneralTypeIssues]
        keys[:, :, begin : begin + size] = key_states
        values[:, :, begin : begin + size] = value_states
        self.keys, self.values = keys[:, :, : begin + size], values[:, :, : begin + size]
        return self.keys, self.values


def _with_room(filled: torch.Tensor, size: int) -> torch.Tensor:
    rows, heads, length, width = filled.shape
    buffer = filled.new_empty(rows, heads, 2 * length + size + 16, width)
    buffer[:, :, :length] = filled
    return buffer


def keeps_cache(model: Any) -> bool:
    """Whether the model reads earlier tokens from keys and values that the loop can select rows of.

    Others (Mamba, RWKV) keep a state of their own. They are run over the whole text at each token,
    and cannot be given padding.
    """
    return "past_key_values" in inspect.signature(base_model(model).forward).parameters


def _next(
    model: Any, input_ids: torch.Tensor, state: dict[str, Any], next_length: int | None
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The logits of the next token (N, V) and the state after the forward pass.

    The whole prompt first (next_length None), then one token at a time; without a state, always the
    whole text.
    """
    if not state:
        return model(input_ids=input_ids, use_cache=False, return_dict=True).logits[:, -1], state
    inputs = model.prepare_inputs_for_generation(
        input_ids,
        next_sequence_length=next_length,
        is_first_iteration=next_length is None,
        **state,
    )
    outputs = model(**inputs, return_dict=True)
    return outputs.logits[:, -1], model._update_model_kwargs_for_generation(outputs, state)


def _rows(
    state: dict[str, Any], processors: LogitsProcessorList, rows: torch.Tensor
) -> dict[str, Any]:
    """The model's inputs, cache and processors with these rows only (a row may come twice)."""
    if state:
        state["past_key_values"].batch_select_indices(rows)
    for processor in processors:
        padding = getattr(processor, "prompt_ignore_length", None)
        if isinstance(padding, torch.Tensor):  # of the repetition penalty: one number a row
            processor.prompt_ignore_length = padding[rows]  # pyright: ignore
    return {
        name: value[rows] if isinstance(value, torch.Tensor) else value
        for name, value in state.items()
    }


def word_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[list[int]]:
    """Token ids of every word as it stands inside a text, after a space."""
    # Tokenizers that put a space before every text would make two of " word": so cut it from a text
    before = _plain_ids(tokenizer, "a")
    return [_plain_ids(tokenizer, f"a {word}")[len(before) :] for word in words]


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert isinstance(ids, list)
    return ids
