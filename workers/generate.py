"""Generates completions of prompts (transformers).

The result only depends on the prompts and the sampling section: random numbers are derived from
seed, prompt and sample, so the number and order of workers do not matter. Of the model's
generation_config.json, only the end-of-text tokens are read.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from prefsweep.sweeps.errors import ModelError
from prefsweep.sweeps.records import Completion, Prompt
from prefsweep.sweeps.spec import ChatSpec, GenerationSpec, Sampling
from prefsweep.workers.decoding import (
    Choice,
    Decoding,
    DiverseGroups,
    Draws,
    Greedy,
    keeps_cache,
    roomy_cache,
    uniforms,
    word_ids,
)
from prefsweep.workers.endings import completion_text, end_ids
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import (
    check_ids,
    context_length,
    load_tokenizer,
    vocabulary_size,
)
from prefsweep.workers.rendering import token_ids


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled completion with its token IDs, including the token that ended it."""

    prompt: Prompt
    sample_idx: int
    prompt_ids: list[int]
    completion_ids: list[int]
    text: str
    finish_reason: str


class Generator:
    """Samples completions from one policy; `before_batch` is called before each batch."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        spec: Sampling,
        chat: ChatSpec | None = None,
        before_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self._before_batch = before_batch
        self._model = model
        self._tokenizer = tokenizer
        self._spec = spec
        self._chat = chat
        self.end_ids = end_ids(tokenizer, model.generation_config, chat)
        """Tokens that end a completion."""

    def complete(self, prompts: Sequence[Prompt], num_completions: int) -> list[Completion]:
        """`num_completions` completions of each prompt, in the order of the prompts."""
        return [
            Completion(
                prompt_id=s.prompt.prompt_id,
                sample_idx=s.sample_idx,
                prompt=s.prompt.text,
                text=s.text,
                finish_reason=s.finish_reason,
                token_ids=s.completion_ids,
            )
            for s in self.sample(prompts, num_completions)
        ]

    def sample(self, prompts: Sequence[Prompt], num_completions: int) -> list[Sample]:
        """As `complete`, with token IDs."""
        by_length = sorted(range(len(prompts)), key=lambda i: len(self._ids(prompts[i])))
        samples: dict[int, list[Sample]] = {}
        for start in range(0, len(prompts), self._spec.batch_size):
            self._before_batch()
            for batch in self._parts(by_length[start : start + self._spec.batch_size], prompts):
                drawn = self._sample_batch([prompts[i] for i in batch], num_completions)
                samples |= dict(zip(batch, drawn, strict=True))
        return [sample for i in range(len(prompts)) for sample in samples[i]]

    def _parts(self, batch: list[int], prompts: Sequence[Prompt]) -> list[list[int]]:
        """The whole batch; for a model that cannot use padding, it is split by prompt length."""
        if keeps_cache(self._model):
            return [batch]
        return [list(part) for _, part in groupby(batch, lambda i: len(self._ids(prompts[i])))]

    def _sample_batch(self, prompts: Sequence[Prompt], num_completions: int) -> list[list[Sample]]:
        prompt_ids = [self._ids(prompt) for prompt in prompts]
        limits = [self._max_new_tokens(prompt) for prompt in prompts]
        decoding = Decoding(num_completions, self._choice(prompts, num_completions), limits)
        new_tokens = self._generate(prompt_ids, decoding).unflatten(0, (len(prompts), -1)).tolist()
        return [
            [self._sample_of(prompt, i, ids, row[:limit]) for i, row in enumerate(rows)]
            for prompt, ids, limit, rows in zip(
                prompts, prompt_ids, limits, new_tokens, strict=True
            )
        ]

    def _ids(self, prompt: Prompt) -> list[int]:
        return list(token_ids(self._tokenizer, prompt.text, chat=self._chat))

    def _choice(self, prompts: Sequence[Prompt], num_completions: int) -> Choice:
        spec = self._spec
        if isinstance(spec, GenerationSpec) and spec.num_beam_groups is not None:
            assert spec.num_beam_groups == num_completions, "the spec validates this"
            return DiverseGroups(spec.num_beam_groups, spec.diversity_penalty)
        if not spec.do_sample:
            return Greedy()
        keys = [prompt.prompt_id for prompt in prompts]
        numbers = uniforms(spec.seed, keys, num_completions, spec.max_new_tokens)
        return Draws(numbers.to(self._model.device))

    def _max_new_tokens(self, prompt: Prompt) -> int:
        """The spec's limit, or the prompt's random limit, which does not depend on the batch."""
        spec = self._spec
        if not isinstance(spec, GenerationSpec) or spec.random_new_tokens is None:
            return spec.max_new_tokens
        return random.Random(f"{spec.seed}:{prompt.prompt_id}").randint(*spec.random_new_tokens)

    def _generate(self, prompt_ids: Sequence[Sequence[int]], decoding: Decoding) -> torch.Tensor:
        """New tokens, of shape (prompts x copies, the longest max_new_tokens in the batch)."""
        pad = self._tokenizer.pad_token_id
        assert isinstance(pad, int), "load_tokenizer sets a pad token"
        ids_BT, mask_BT = left_padded(prompt_ids, pad)
        with _without_own_config(self._model):
            return self._model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=ids_BT.to(self._model.device),
                attention_mask=mask_BT.to(self._model.device),
                generation_config=self._config(max(decoding.limits)),
                custom_generate=decoding,
                **self._cache(),
            )

    def _cache(self) -> dict[str, Any]:
        if keeps_cache(self._model):
            return {"past_key_values": roomy_cache(self._model)}
        return {"use_cache": False}

    def _sample_of(
        self, prompt: Prompt, sample_idx: int, prompt_ids: list[int], ids: list[int]
    ) -> Sample:
        end = next((i for i, each in enumerate(ids) if each in self.end_ids), None)
        text = completion_text(self._tokenizer, ids[:end], self._chat)
        reason = "length" if end is None else "eos"
        ids = ids if end is None else ids[: end + 1]
        return Sample(prompt, sample_idx, prompt_ids, ids, text, reason)

    def _config(self, max_new_tokens: int) -> GenerationConfig:
        spec = self._spec
        sampling = {"temperature": spec.temperature, "top_k": spec.top_k, "top_p": spec.top_p}
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            min_new_tokens=spec.min_new_tokens or None,
            do_sample=spec.do_sample,
            no_repeat_ngram_size=spec.no_repeat_ngram_size or None,
            repetition_penalty=spec.repetition_penalty,
            eos_token_id=list(self.end_ids),
            pad_token_id=self._tokenizer.pad_token_id,
            **(sampling if spec.do_sample else {}),
            **(self._word_rules(spec) if isinstance(spec, GenerationSpec) else {}),
        )

    def _word_rules(self, spec: GenerationSpec) -> dict[str, Any]:
        bias = [
            [ids, each.bias]
            for each in spec.sequence_bias
            for ids in word_ids(self._tokenizer, each.words)
        ]
        bad_words = word_ids(self._tokenizer, spec.bad_words)
        return {"sequence_bias": bias or None, "bad_words_ids": bad_words or None}


@contextmanager
def _without_own_config(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Keep `generate` from filling unset fields from the model's generation config."""
    own: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    kept, own.generation_config = own.generation_config, GenerationConfig()
    try:
        yield
    finally:
        own.generation_config = kept


def left_padded(
    rows: Sequence[Sequence[int]], pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """IDs and attention mask (B, T), padded on the left."""
    longest = max(map(len, rows))
    return (
        torch.tensor([[pad_token_id] * (longest - len(row)) + list(row) for row in rows]),
        torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
    )


def check_prompt_lengths(
    prompts: Sequence[Prompt],
    source: ModelSource,
    max_new_tokens: int,
    field: str,
    chat: ChatSpec | None = None,
) -> None:
    """Raises ModelError if a prompt plus `max_new_tokens` exceeds the model's context, or contains
    a token without an embedding in the model."""
    limit, rows, tokenizer = context_length(source), vocabulary_size(source), load_tokenizer(source)
    for prompt in prompts:
        ids = token_ids(tokenizer, prompt.text, chat=chat)
        check_ids(ids, rows, tokenizer)
        length = len(ids)
        if limit is not None and length + max_new_tokens > limit:
            raise ModelError(
                f"prompt {prompt.text[:60]!r} has {length} tokens; with {field}={max_new_tokens} "
                f"that exceeds the {limit} tokens that {source.path} can read. "
                f"Shorten the prompts (prompts.take) or lower {field}"
            )
