"""Counts what tokenization does to the user's texts; it changes nothing.

Each count is a note of the reference stage; the note's text is also the log message.
"""

import re
from collections import Counter
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from prefsweep.sweeps.records import NOTED, PreferencePair
from prefsweep.sweeps.spec import ChatSpec, TrainingSpec
from prefsweep.workers.chat import written_messages
from prefsweep.workers.reference import is_cut, uncut_pair
from prefsweep.workers.rendering import Ids, decoded, rendered, start_ids, token_ids

SPECIAL = NOTED + "pairs that hold {} as text, which is read as the special token"
LOSSY = NOTED + "texts that come back changed when they are tokenized and decoded"
CUT = NOTED + "pairs with a completion that is cut at training.max_length"
MERGED = NOTED + "pairs whose prompt ends inside a token, so that training sees a shorter prompt"


def text_notes(
    pairs: Sequence[PreferencePair],
    tokenizer: PreTrainedTokenizerBase,
    spec: TrainingSpec,
    chat: ChatSpec | None = None,
) -> dict[str, float]:
    """Counts by note, without zeros.

    For sampled completions only the prompts are checked, because the sampled tokens are used.
    """
    counts, lossy = Counter[str](), set[tuple[str, str | None]]()
    special = _special_texts(tokenizer)
    for pair in pairs:
        prompt_ids = token_ids(tokenizer, pair.prompt, chat=chat)
        texts: dict[str | None, Ids] = {None: prompt_ids}
        uncut = uncut_pair(pair, tokenizer, spec, chat)
        counts[CUT] += is_cut(uncut, spec)
        if not is_sampled(pair):
            counts[MERGED] += len(uncut.prompt_ids) < len(prompt_ids)
            texts = {
                pair.chosen: uncut.prompt_ids + uncut.chosen_ids,
                pair.rejected: uncut.prompt_ids + uncut.rejected_ids,
            }
        for completion, ids in texts.items():
            if not _survives(pair.prompt, completion, ids, tokenizer, chat):
                lossy.add((pair.prompt, completion))
        found = {token for text in _written(pair, tokenizer) for token in special.findall(text)}
        counts.update(SPECIAL.format(token) for token in found)
    counts[LOSSY] = len(lossy)
    return {name: float(count) for name, count in sorted(counts.items()) if count}


def is_sampled(pair: PreferencePair) -> bool:
    """Whether the tokens of both completions are known."""
    return pair.chosen_token_ids is not None and pair.rejected_token_ids is not None


def _survives(
    prompt: str,
    completion: str | None,
    ids: Ids,
    tokenizer: PreTrainedTokenizerBase,
    chat: ChatSpec | None,
) -> bool:
    """Whether `ids` decode to the same text, ignoring leading spaces."""
    if chat is not None:
        text = rendered(tokenizer, prompt, chat, completion)
        return decoded(tokenizer, ids).lstrip(" ") == text.lstrip(" ")
    start, end = decoded(tokenizer, start_ids(tokenizer)), str(tokenizer.eos_token)
    again = decoded(tokenizer, ids if prompt else ids[1:])

    def bare(text: str) -> str:
        return text.removeprefix(start).removesuffix(end).lstrip(" ")

    return bare(again) == bare(prompt + (completion or ""))


def _written(pair: PreferencePair, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of a pair, without a leading start token and a trailing end token."""
    talk = written_messages(pair.prompt)
    if talk is not None:
        prompts = [message["content"] for message in talk]
    else:
        prompts = [pair.prompt.lstrip().removeprefix(decoded(tokenizer, start_ids(tokenizer)))]
    if is_sampled(pair):
        return prompts
    end = str(tokenizer.eos_token)
    return [*prompts, pair.chosen.removesuffix(end), pair.rejected.removesuffix(end)]


def _special_texts(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    added = {str(each) for each in tokenizer.added_tokens_decoder.values() if each.special}
    names = sorted(added.union(map(str, tokenizer.all_special_tokens)), key=len, reverse=True)
    return re.compile("|".join(re.escape(name) for name in names if name) or r"(?!)")
