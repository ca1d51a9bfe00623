"""Makes prompts from texts: training prompts and held-out ones, no prompt in both."""

import hashlib
import logging
from collections.abc import Sequence

from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.records import Prompt, hash_share, prompt_id
from prefsweep.sweeps.spec import (
    BuiltinPrompts,
    DatasetPrompts,
    FilePrompts,
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
    return select_prompts(prompt_texts(spec, tokenizer_source), spec)


def prompt_texts(
    spec: BuiltinPrompts | FilePrompts | DatasetPrompts, tokenizer_source: ModelSource
) -> list[str]:
    """What `spec` takes of its texts; repetitions are among them."""
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
    return taken


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
    """Distinct prompts: those to train on and the held-out ones, each side in order.

    Where num_train is given, a larger num_eval leaves the training prompts as they are.
    """
    distinct = distinct_prompts(texts, spec)
    held_out, others = _sides(distinct, spec)
    most = len(distinct) - spec.num_eval
    num_train = min(len(others), most) if spec.num_train is None else spec.num_train
    if not 1 <= num_train <= most:
        wanted = "at least 1" if spec.num_train is None else str(spec.num_train)
        raise DataError(
            f"prompts: {len(distinct)} distinct prompts were found in {len(texts)} texts, but "
            f"num_train={wanted} and num_eval={spec.num_eval} are wanted; "
            "lower them or give more texts"
        )
    train = [*others, *reversed(held_out)][:num_train]  # what a side lacks, the other's end gives
    trained = {prompt.prompt_id for prompt in train}
    free = [p for p in (*held_out, *reversed(others)) if p.prompt_id not in trained]
    evaluated = free[: spec.num_eval]
    own = {prompt.prompt_id for prompt in held_out}
    moved = sum(p.prompt_id in own for p in train)
    moved += sum(p.prompt_id not in own for p in evaluated)
    if moved:
        log.info(
            "prompts: eval_fraction=%g keeps %d of %d prompts for the evaluation; %d are on the "
            "other side, and would move if texts were appended or num_train was raised",
            *(spec.eval_fraction, len(held_out), len(distinct), moved),
        )
    return train, evaluated


def evaluation_order(prompts: Sequence[Prompt], spec: PromptSelection) -> list[Prompt]:
    """The prompts as an evaluation takes them: its own share, then the others from the end."""
    held_out, others = _sides(prompts, spec)
    return [*held_out, *reversed(others)]


def _sides(prompts: Sequence[Prompt], spec: PromptSelection) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts that are kept for the evaluation, and the others, each in their order."""
    sides: dict[bool, list[Prompt]] = {True: [], False: []}
    for prompt in prompts:
        sides[is_held_out(prompt.prompt_id, spec)].append(prompt)
    return sides[True], sides[False]


def distinct_prompts(texts: Sequence[str], spec: PromptSelection) -> list[Prompt]:
    """Each prompt once, in the order of the texts or, with a seed, of a hash."""
    by_id: dict[str, str] = {}
    for text in texts:
        if text.strip():
            by_id.setdefault(prompt_id(text), text)
    ids, seed = list(by_id), spec.shuffle_seed
    if seed is not None:
        ids.sort(key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    return [Prompt(name, by_id[name]) for name in ids]


def is_held_out(name: str, spec: PromptSelection) -> bool:
    """Whether the prompt of that id is of the share that is kept for the evaluation."""
    return hash_share(f"eval:{name}") < spec.eval_fraction


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
