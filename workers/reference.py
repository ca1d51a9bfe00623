"""Tokenizes pairs and computes the reference's log-probabilities, once per sweep.

Sampled completions keep their sampled tokens. Other texts are tokenized as by TRL 1.16: the
completion starts where the tokens of the prompt and of prompt + completion diverge, and is followed
by the end-of-text token, or by what the chat template writes after an answer. Long prompts are cut
at their start, long completions at their end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefsweep.sweeps.errors import DataError, ModelError
from prefsweep.sweeps.records import PreferencePair, TokenizedPair
from prefsweep.sweeps.spec import ChatSpec, TrainingSpec
from prefsweep.workers.endings import closing_id
from prefsweep.workers.forward import Batching, token_logps
from prefsweep.workers.models import check_ids
from prefsweep.workers.rendering import Ids, answered_ids, token_ids


@dataclass(frozen=True, slots=True)
class PairTokens:
    """Token IDs of one pair: prompt, chosen and rejected completion."""

    prompt_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids


def tokenize_pair(
    pair: PreferencePair,
    tokenizer: PreTrainedTokenizerBase,
    spec: TrainingSpec,
    chat: ChatSpec | None = None,
) -> PairTokens | None:
    """The pair as token IDs; None if the prompt alone fills `max_length`."""
    uncut = uncut_pair(pair, tokenizer, spec, chat)
    kept = uncut.prompt_ids
    if spec.max_prompt_length is not None:
        kept = kept[-spec.max_prompt_length :]
    room = spec.max_length - len(kept)
    if room < 1:
        return None
    if not kept:
        raise DataError(
            f"pair {pair.pair_id}: the prompt {pair.prompt!r} has no tokens; the first "
            "completion token needs one before it"
        )
    return PairTokens(kept, uncut.chosen_ids[:room], uncut.rejected_ids[:room])


def uncut_pair(
    pair: PreferencePair,
    tokenizer: PreTrainedTokenizerBase,
    spec: TrainingSpec,
    chat: ChatSpec | None = None,
) -> PairTokens:
    """The pair as token IDs, before it is cut to a maximum length."""
    prompt_ids = token_ids(tokenizer, pair.prompt, chat=chat)
    chosen, rejected = pair.chosen_token_ids, pair.rejected_token_ids
    if chosen is not None and rejected is not None:
        ends = closing_id(tokenizer, chat), spec
        return PairTokens(
            prompt_ids,
            _closed(chosen, pair.chosen_finish_reason, *ends),
            _closed(rejected, pair.rejected_finish_reason, *ends),
        )
    how = pair.prompt, tokenizer, spec, chat
    chosen_ids = _ids_of_text(pair.chosen, pair.chosen_finish_reason, *how)
    rejected_ids = _ids_of_text(pair.rejected, pair.rejected_finish_reason, *how)
    start = min(_common(prompt_ids, chosen_ids), _common(prompt_ids, rejected_ids))
    return PairTokens(prompt_ids[:start], chosen_ids[start:], rejected_ids[start:])


def is_cut(uncut: PairTokens, spec: TrainingSpec) -> bool:
    """Whether max_length cuts a completion of the pair (although the prompt fits)."""
    num_prompt = min(len(uncut.prompt_ids), spec.max_prompt_length or spec.max_length)
    longest = max(len(uncut.chosen_ids), len(uncut.rejected_ids))
    return num_prompt < spec.max_length < num_prompt + longest


def reference_pairs(
    pairs: Sequence[PreferencePair],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: TrainingSpec,
    chat: ChatSpec | None = None,
    half: str | None = None,
) -> list[TokenizedPair]:
    """All pairs that fit and whose tokens differ, with log pi_ref of every completion token.

    Each distinct sequence is run once.

    They are computed as the policy is trained, under autocast to `half` (`TrainingSpec.autocast`):
    a policy that has not moved then has log-ratios of 0 but for rounding.
    """
    tokens = [tokenize_pair(pair, tokenizer, spec, chat) for pair in pairs]
    kept = [
        (pair, t)
        for pair, t in zip(pairs, tokens, strict=True)
        if t is not None and t.chosen_ids != t.rejected_ids
    ]
    sequences = dict.fromkeys(
        (t.prompt_ids, ids) for _, t in kept for ids in (t.chosen_ids, t.rejected_ids)
    )
    rows = len(model.get_input_embeddings().weight)  # pyright: ignore[reportArgumentType]
    check_ids((i for part in sequences for ids in part for i in ids), rows, tokenizer)
    _check_context(model, max((len(p) + len(c) for p, c in sequences), default=0))
    batching = Batching(packs=spec.packing == "auto", half=half)
    logps = token_logps(model, list(sequences), batching)
    return [
        TokenizedPair(
            pair.pair_id,
            pair.prompt_id,
            pair.split,
            list(t.prompt_ids),
            list(t.chosen_ids),
            list(t.rejected_ids),
            logps[t.prompt_ids, t.chosen_ids],
            logps[t.prompt_ids, t.rejected_ids],
        )
        for pair, t in kept
    ]


def why_dropped(
    pairs: Sequence[PreferencePair],
    tokenizer: PreTrainedTokenizerBase,
    spec: TrainingSpec,
    chat: ChatSpec | None = None,
) -> dict[str, int]:
    """Number of pairs that `reference_pairs` leaves out, by reason."""
    filled = sum(tokenize_pair(pair, tokenizer, spec, chat) is None for pair in pairs)
    return {
        "dropped: prompt fills max_length": filled,
        "dropped: same tokens after max_length": len(pairs) - filled,
    }


def reference_sums(pair: TokenizedPair, ld_alpha: float | None) -> tuple[float, float]:
    """(ref_chosen_logps, ref_rejected_logps) for the loss: sums over tokens.

    With ld_alpha, tokens beyond the length of the shorter completion have the weight ld_alpha
    (LD-DPO, arXiv 2409.06411).
    """
    shared = min(len(pair.chosen_ids), len(pair.rejected_ids))
    weight = 1.0 if ld_alpha is None else ld_alpha

    def weighted(logps: list[float]) -> float:
        return sum(logps[:shared]) + weight * sum(logps[shared:])

    return weighted(pair.ref_chosen_token_logps), weighted(pair.ref_rejected_token_logps)


def _check_context(model: PreTrainedModel, longest: int) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise ModelError(
            f"a pair has {longest} tokens, but the policy can read {limit}; "
            f"set training.max_length to {limit} or less"
        )


def _closed(ids: Sequence[int], finish_reason: str, closing: int, spec: TrainingSpec) -> Ids:
    """Sampled IDs; completions that were cut at a length get an end token if all completions do."""
    if finish_reason == "eos" or spec.eos == "finished":
        return tuple(ids)
    return *ids, closing


def _ids_of_text(
    text: str,
    finish_reason: str,
    prompt: str,
    tokenizer: PreTrainedTokenizerBase,
    spec: TrainingSpec,
    chat: ChatSpec | None,
) -> Ids:
    """IDs of the prompt and of a completion given as text, with its end."""
    if spec.eos == "finished" and finish_reason != "eos":
        return token_ids(tokenizer, prompt, text, chat)
    if chat is not None:
        return answered_ids(tokenizer, prompt, text, chat)
    eos = tokenizer.eos_token
    assert isinstance(eos, str)
    return token_ids(tokenizer, prompt, text if text.endswith(eos) else text + eos)


def _common(left: Ids, right: Ids) -> int:
    return next(_differences(left, right), min(len(left), len(right)))


def _differences(left: Ids, right: Ids) -> Iterator[int]:
    return (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
