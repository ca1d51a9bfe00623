"""Makes prompts from texts: training prompts and held-out ones, no prompt in both."""

import logging
import random
from collections.abc import Sequence

from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.records import Prompt, prompt_id
from prefsweep.sweeps.spec import (
    FirstTokens,
    FirstWords,
    Prompts,
    PromptSelection,
    UnconditionalPrompts,
)
from prefsweep.workers.chat import written_messages
from prefsweep.workers.corpus import load_texts
from prefsweep.workers.locations import ModelSource

log = logging.getLogger(__name__)


def make_prompts(spec: Prompts, tokenizer_source: ModelSource) -> tuple[list[Prompt], list[Prompt]]:
    """The training and the held-out prompts of `spec`, without repetitions.

    The tokenizer is loaded only for `take: {first_tokens: N}`. Raises DataError.
    """
    if isinstance(spec, UnconditionalPrompts):
        return unconditional_prompts(spec)
    rows = load_texts(spec, messages=True)
    texts = [row.text for row in rows if is_wanted(row.text, spec)]
    taken = _take(texts, spec, tokenizer_source)
    said = [text for text in taken if text.strip()]
    for reason, count in {
        "shorter than min_chars or longer than max_chars": len(rows) - len(texts),
        "blank text": len(taken) - len(said),
        "repeated prompt": len(said) - len(set(map(prompt_id, said))),
    }.items():
        if count:
            log.info("prompts: dropped %d: %s", count, reason)
    return select_prompts(taken, spec)


def unconditional_prompts(spec: UnconditionalPrompts) -> tuple[list[Prompt], list[Prompt]]:
    """Numbered draws of the empty prompt, each with a different ID."""
    draws = [Prompt(prompt_id(f"draw {i}"), "") for i in range(spec.num_train + spec.num_eval)]
    return draws[: spec.num_train], draws[spec.num_train :]


def is_wanted(text: str, spec: PromptSelection) -> bool:
    """Whether the length of the complete text is within the spec's limits."""
    longest = len(text) if spec.max_chars is None else spec.max_chars
    return spec.min_chars <= len(text) <= longest


def select_prompts(
    texts: Sequence[str], spec: PromptSelection
) -> tuple[list[Prompt], list[Prompt]]:
    """Distinct prompts, shuffled if requested: first the training prompts, then the held-out ones.

    If num_train is given, a larger num_eval does not change the training prompts.
    """
    by_id = dict[str, str]()
    for text in texts:
        if text.strip():
            by_id.setdefault(prompt_id(text), text)
    distinct = list(by_id.values())
    if spec.shuffle_seed is not None:
        random.Random(spec.shuffle_seed).shuffle(distinct)
    num_train = len(distinct) - spec.num_eval if spec.num_train is None else spec.num_train
    if num_train < 1 or num_train + spec.num_eval > len(distinct):
        wanted = "at least 1" if spec.num_train is None else str(spec.num_train)
        raise DataError(
            f"prompts: {len(distinct)} distinct prompts were found in {len(texts)} texts, but "
            f"num_train={wanted} and num_eval={spec.num_eval} are needed; "
            "lower them or use more texts"
        )
    prompts = [Prompt(prompt_id(text), text) for text in distinct[: num_train + spec.num_eval]]
    return prompts[:num_train], prompts[num_train:]


def _take(texts: list[str], spec: PromptSelection, source: ModelSource) -> list[str]:
    take = spec.take
    if take == "whole":
        return texts
    if any(written_messages(text) is not None for text in texts):
        raise DataError(
            f"prompts.take={take} cuts texts, but the prompts are lists of chat messages; "
            "set prompts.take: whole"
        )
    if take == "first_sentence":
        return [text.split(".")[0] for text in texts]
    if isinstance(take, FirstWords):
        return [" ".join(text.split()[: take.first_words]) for text in texts]
    assert isinstance(take, FirstTokens)
    from prefsweep.workers.models import load_tokenizer

    tokenizer = load_tokenizer(source)
    return [
        tokenizer.decode(
            tokenizer(text, add_special_tokens=False)["input_ids"][: take.first_tokens]
        )  # pyright: ignore
        for text in texts
    ]
