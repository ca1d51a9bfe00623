"""Diverse beam search with one beam a group (Vijayakumar et al., arXiv 1610.02424), for `generate`.

In: the rows, logits processors and stopping criteria that transformers' `generate` has prepared.
Out: one sequence a group and prompt. At every step the groups of a prompt choose one after the
other: each takes the token of highest log-probability, after the logits processors, minus
`diversity_penalty` for every earlier group that took the token at this step. Groups that have ended
take none. transformers 5 has no such decoding of its own without code from a hub.

Shapes: B prompts, G groups, V tokens of the vocabulary, T tokens so far; row b * G + g is group g
of prompt b.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)


@dataclass(frozen=True)
class DiverseBeams:
    """A `custom_generate` for `model.generate`, whose inputs hold every prompt `num_groups` times.

    With one group, or no penalty, it is greedy search.
    """

    num_groups: int
    diversity_penalty: float

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> torch.Tensor:
        """`input_ids` with the new tokens behind them; rows that ended early are padded."""
        pad = generation_config.pad_token_id
        live_N = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        next_length = None  # the whole prompt first, then one token at a time
        while live_N.any():
            inputs = model.prepare_inputs_for_generation(
                input_ids,
                next_sequence_length=next_length,
                is_first_iteration=next_length is None,
                **model_kwargs,
            )
            outputs = model(**inputs, return_dict=True)
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
            logits_NV = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)
            scores_NV = logits_processor(input_ids, logits_NV)  # pyright: ignore[reportArgumentType]
            tokens_N = choose(scores_NV, live_N, self.num_groups, self.diversity_penalty)
            tokens_N = torch.where(live_N, tokens_N, pad)
            input_ids = torch.cat([input_ids, tokens_N[:, None]], dim=-1)
            live_N = live_N & ~stopping_criteria(input_ids, None)  # pyright: ignore
            next_length = 1 if model_kwargs["use_cache"] else None
        return input_ids


def choose(
    scores_NV: torch.Tensor, live_N: torch.Tensor, num_groups: int, diversity_penalty: float
) -> torch.Tensor:
    """The next token of every row (N = B x G); rows that are not live leave no penalty behind.

    Scores are logits: log-probabilities are lower by one number per row, and so choose the same.
    """
    scores_BGV = scores_NV.unflatten(0, (-1, num_groups))
    live_BG = live_N.unflatten(0, (-1, num_groups)).float()
    counts_BV = torch.zeros_like(scores_BGV[:, 0])
    tokens_B: list[torch.Tensor] = []
    for group in range(num_groups):
        chosen_B = (scores_BGV[:, group] - diversity_penalty * counts_BV).argmax(-1)
        counts_BV.scatter_add_(1, chosen_B[:, None], live_BG[:, group, None])
        tokens_B.append(chosen_B)
    return torch.stack(tokens_B, dim=1).flatten()


def word_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[list[int]]:
    """Token ids of every word as it stands inside a text, after a space."""
    # Tokenizers that put a space before every text would make two of " word": so cut it from a text
    before = _plain_ids(tokenizer, "a")
    return [_plain_ids(tokenizer, f"a {word}")[len(before) :] for word in words]


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert isinstance(ids, list)
    return ids
