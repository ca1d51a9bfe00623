"""A decoding loop for transformers' `generate`: one prefill per prompt; ended rows are removed.

The input is the prompts, and the logits processors and stopping criteria that `generate` prepares;
the output is the new tokens of `copies` rows per prompt. The model runs each prompt once, and the
prompt's cache is repeated for its rows. The next tokens are chosen by one of

  Greedy         the highest score
  Draws          a sample from softmax(scores), with separate random numbers for each row, so that a
                 row does not depend on the other rows of its batch
  DiverseGroups  diverse beam search with one beam per group (Vijayakumar et al., arXiv 1610.02424):
                 the rows of a prompt choose in order; each takes the token with the highest score
                 minus `penalty` for every earlier row that chose the token at this step.
                 transformers 5 only has this decoding as code from the hub

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
"""Share of unfinished rows below which finished rows are removed from the batch."""
CUDA_LOOKS_EVERY = 8
"""On CUDA, steps between two checks of which rows have ended; each check waits for the device."""


class Choice(Protocol):
    """Chooses the next tokens."""

    @property
    def rows_per_prompt(self) -> int:
        """Rows that depend on each other and are removed together: 1, or a prompt's copies."""
        ...

    def __call__(
        self, scores_NV: torch.Tensor, rows_N: torch.Tensor, live_N: torch.Tensor, step: int
    ) -> torch.Tensor:
        """The token (N,) of every row; `rows_N` are the rows' original numbers."""
        ...


@dataclass(frozen=True)
class Decoding:
    """A `custom_generate` for `model.generate`; the config's num_return_sequences stays 1."""

    copies: int
    """Rows per prompt."""
    choice: Choice
    limits: Sequence[int]
    """Maximum number of new tokens for each prompt."""

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
        """New tokens (B x G, longest limit), padded after a row's end."""
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
                stays_N = live_N.unflatten(0, (-1, self.choice.rows_per_prompt)).any(-1)
                stays_N = stays_N.repeat_interleave(self.choice.rows_per_prompt)
                if stays_N.float().mean() <= LEAVE_AT:
                    kept = stays_N.nonzero()[:, 0]
                    state = _rows(state, logits_processor, kept)
                    ids_NT, rows_N, live_N = ids_NT[kept], rows_N[kept], live_N[kept]
            logits_NV, state = _next(model, ids_NT, state, 1)
        return new_tokens


@dataclass(frozen=True)
class Greedy:
    """Chooses the token with the highest score."""

    rows_per_prompt: int = 1

    def __call__(
        self, scores_NV: torch.Tensor, rows_N: torch.Tensor, live_N: torch.Tensor, step: int
    ) -> torch.Tensor:
        """The tokens."""
        return scores_NV.argmax(-1)


@dataclass(frozen=True)
class Draws:
    """Samples from softmax(scores): the token where its cumulative sum exceeds a random number."""

    uniforms: torch.Tensor
    """(B x G, steps), in [0, 1), float64."""
    rows_per_prompt: int = 1

    def __call__(
        self, scores_NV: torch.Tensor, rows_N: torch.Tensor, live_N: torch.Tensor, step: int
    ) -> torch.Tensor:
        """The tokens; a token with probability 0 is never chosen."""
        sums_NV = scores_NV.softmax(-1).cumsum(-1, dtype=torch.float64)
        at_N1 = self.uniforms[rows_N, step, None] * sums_NV[:, -1:]
        return torch.searchsorted(sums_NV, at_N1, right=True)[:, 0]


@dataclass(frozen=True)
class DiverseGroups:
    """Diverse beam search. Ended rows add no penalty. With one group or no penalty, it is greedy.

    Scores are logits. Log-probabilities differ by one constant per row, so the choice is the same.
    """

    rows_per_prompt: int
    """Groups per prompt."""
    penalty: float

    def __call__(
        self, scores_NV: torch.Tensor, rows_N: torch.Tensor, live_N: torch.Tensor, step: int
    ) -> torch.Tensor:
        """The tokens."""
        scores_BGV = scores_NV.unflatten(0, (-1, self.rows_per_prompt))
        live_BG = live_N.unflatten(0, (-1, self.rows_per_prompt)).float()
        counts_BV = torch.zeros_like(scores_BGV[:, 0])
        tokens_B: list[torch.Tensor] = []
        for group in range(self.rows_per_prompt):
            chosen_B = (scores_BGV[:, group] - self.penalty * counts_BV).argmax(-1)
            counts_BV.scatter_add_(1, chosen_B[:, None], live_BG[:, group, None])
            tokens_B.append(chosen_B)
        return torch.stack(tokens_B, dim=1).flatten()


def uniforms(seed: int, keys: Sequence[str], copies: int, steps: int) -> torch.Tensor:
    """Random numbers for `Draws`, (keys x copies, steps), from seed, key and number of the copy."""
    generator = torch.Generator()
    rows: list[torch.Tensor] = []
    for key in keys:
        for copy in range(copies):
            digest = hashlib.sha256(f"{seed}:{key}:{copy}".encode()).digest()
            generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            rows.append(torch.rand(steps, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


def roomy_cache(model: Any) -> Cache:
    """A cache whose layers grow by doubling; transformers' layers are copied at every token."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_RoomyLayer() if type(each) is DynamicLayer else each for each in cache.layers]
    return cache


class _RoomyLayer(DynamicLayer):
    """A layer whose `keys` and `values` are the filled parts of larger buffers."""

    _buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (rows, heads, tokens, size) and return all keys and values so far."""
        begin, size = self.get_seq_length(), key_states.shape[-2]
        if begin == 0:
            return super().update(key_states, value_states, *args, **kwargs)
        assert self.keys is not None and self.values is not None
        fits = self._buffers is not None and begin + size <= self._buffers[0].shape[-2]
        # removing or repeating rows has made new tensors
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
    """Whether the model caches earlier tokens as keys and values, of which rows can be selected.

    Other models (Mamba, RWKV) have another state. They are run over the complete text for each
    token, and without padding.
    """
    return "past_key_values" in inspect.signature(base_model(model).forward).parameters


def _next(
    model: Any, input_ids: torch.Tensor, state: dict[str, Any], next_length: int | None
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The logits of the next token (N, V) and the state after the forward pass.

    Runs the complete prompt first (next_length None), then one token at a time; without a state,
    always the complete text.
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
    """The model's inputs, cache and processors with only these rows (a row may occur twice)."""
    if state:
        state["past_key_values"].batch_select_indices(rows)
    for processor in processors:
        padding = getattr(processor, "prompt_ignore_length", None)
        if isinstance(padding, torch.Tensor):  # of the repetition penalty: one number per row
            processor.prompt_ignore_length = padding[rows]  # pyright: ignore
    return {
        name: value[rows] if isinstance(value, torch.Tensor) else value
        for name, value in state.items()
    }


def word_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[list[int]]:
    """Token IDs of every word inside a text, after a space."""
    # Tokenizers that put a space before every text would make two of " word": so cut it from a text
    before = _plain_ids(tokenizer, "a")
    return [_plain_ids(tokenizer, f"a {word}")[len(before) :] for word in words]


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert isinstance(ids, list)
    return ids
