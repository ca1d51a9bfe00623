"""Prompts in, completions out (transformers).

A call's result depends on its prompts and the sampling section alone: the random state is set from
them and restored afterwards, so the number of workers and their order change nothing.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import BatchEncoding, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from prefsweep.sweeps.errors import ModelError
from prefsweep.sweeps.records import Completion, Prompt
from prefsweep.sweeps.spec import GenerationSpec, Sampling
from prefsweep.workers.decoding import DiverseBeams, word_ids
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import context_length, load_tokenizer


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled completion with its token ids (end-of-text included where it was sampled)."""

    prompt: Prompt
    sample_idx: int
    prompt_ids: list[int]
    completion_ids: list[int]
    text: str
    finish_reason: str


class Generator:
    """Samples completions from one policy."""

    def __init__(
        self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, spec: Sampling
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._spec = spec

    def complete(self, prompts: Sequence[Prompt], num_completions: int) -> list[Completion]:
        """`num_completions` completions of each prompt, in the order of the prompts."""
        return [
            Completion(s.prompt.prompt_id, s.sample_idx, s.prompt.text, s.text, s.finish_reason)
            for s in self.sample(prompts, num_completions)
        ]

    def sample(self, prompts: Sequence[Prompt], num_completions: int) -> list[Sample]:
        """As `complete`, with token ids."""
        samples: list[Sample] = []
        with seeded(self._spec.seed, [prompt.prompt_id for prompt in prompts]):
            for start in range(0, len(prompts), self._spec.batch_size):
                batch = prompts[start : start + self._spec.batch_size]
                samples += self._sample_batch(batch, num_completions)
        return samples

    @torch.inference_mode()
    def _sample_batch(self, prompts: Sequence[Prompt], num_completions: int) -> list[Sample]:
        encoded = self._tokenizer(
            [prompt.text for prompt in prompts], return_tensors="pt", padding=True
        ).to(self._model.device)
        prompt_length = encoded["input_ids"].shape[1]  # pyright: ignore
        output_NT = self._generate(encoded, num_completions)
        return [
            self._sample_of(prompts[row // num_completions], row % num_completions, prompt_ids, ids)
            for row, (prompt_ids, ids) in enumerate(
                zip(
                    self._unpadded(encoded, num_completions),
                    output_NT[:, prompt_length:].tolist(),
                    strict=True,
                )
            )
        ]

    def _generate(self, encoded: BatchEncoding, num_completions: int) -> torch.Tensor:
        """Prompt and completion ids, `num_completions` rows for each prompt."""
        beams = self._beams(num_completions)
        rows = dict(encoded)
        if beams is not None:
            rows = {name: ids.repeat_interleave(beams.num_groups, 0) for name, ids in rows.items()}
        return self._model.generate(  # pyright: ignore[reportCallIssue]
            **rows,
            generation_config=self._config(num_completions if beams is None else 1),
            custom_generate=beams,
        )

    def _beams(self, num_completions: int) -> DiverseBeams | None:
        spec = self._spec
        if not isinstance(spec, GenerationSpec) or spec.num_beam_groups is None:
            return None
        assert spec.num_beam_groups == num_completions, "the spec sees to it"
        return DiverseBeams(spec.num_beam_groups, spec.diversity_penalty)

    def _unpadded(self, encoded: BatchEncoding, repeats: int) -> Iterator[list[int]]:
        for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True):
            prompt_ids = ids[mask.bool()].tolist()
            for _ in range(repeats):
                yield prompt_ids

    def _sample_of(
        self, prompt: Prompt, sample_idx: int, prompt_ids: list[int], ids: list[int]
    ) -> Sample:
        eos = self._tokenizer.eos_token_id
        finished = eos in ids
        if finished:
            ids = ids[: ids.index(eos) + 1]
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)
        reason = "eos" if finished else "length"
        return Sample(prompt, sample_idx, prompt_ids, ids, text, reason)

    def _config(self, num_completions: int) -> GenerationConfig:
        spec = self._spec
        sampling = {"temperature": spec.temperature, "top_k": spec.top_k, "top_p": spec.top_p}
        return GenerationConfig(
            max_new_tokens=spec.max_new_tokens,
            min_new_tokens=spec.min_new_tokens or None,
            do_sample=spec.do_sample,
            num_return_sequences=num_completions,
            no_repeat_ngram_size=spec.no_repeat_ngram_size or None,
            repetition_penalty=spec.repetition_penalty,
            eos_token_id=self._tokenizer.eos_token_id,
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
def seeded(seed: int, keys: Sequence[str]) -> Iterator[None]:
    """The random state of torch set from `seed` and `keys`, and restored at the end."""
    digest = hashlib.sha256(f"{seed}:{','.join(keys)}".encode()).digest()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        yield


def check_prompt_lengths(
    prompts: Sequence[Prompt], source: ModelSource, max_new_tokens: int, field: str
) -> None:
    """Raises ModelError if a prompt with `max_new_tokens` more exceeds the model's context."""
    limit = context_length(source)
    if limit is None:
        return
    tokenizer = load_tokenizer(source)
    for prompt in prompts:
        length = len(tokenizer(prompt.text)["input_ids"])  # pyright: ignore[reportArgumentType]
        if length + max_new_tokens > limit:
            raise ModelError(
                f"prompt {prompt.text[:60]!r} has {length} tokens; with {field}={max_new_tokens} "
                f"that exceeds the {limit} tokens that {source.path} can read. "
                f"Shorten the prompts (prompts.take) or lower {field}"
            )
