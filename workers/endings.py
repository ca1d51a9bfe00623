"""Where an answer ends: the tokens at which sampling stops, and the text in front of them.

A text ends at the tokenizer's end-of-text token, at those that the model's generation config names
(eos_token_id, often a list), and with `chat` at the token that the chat template puts behind an
answer (<|im_end|>, <|eot_id|>, <end_of_turn>, ...).
"""

from collections.abc import Sequence
from functools import lru_cache

from transformers import GenerationConfig, PreTrainedTokenizerBase

from prefsweep.sweeps.errors import ModelError
from prefsweep.sweeps.spec import ChatSpec
from prefsweep.workers.rendering import Ids, bare_ids, decoded, rendered

_ANSWER = "answer"


def closing_id(tokenizer: PreTrainedTokenizerBase, chat: ChatSpec | None) -> int:
    """The token that ends a completion: the chat template's, or the end-of-text token."""
    eos = tokenizer.eos_token_id
    assert isinstance(eos, int), "load_tokenizer refuses tokenizers without end-of-text"
    if chat is None:
        return eos
    template = str(tokenizer.chat_template)
    closing = _closing_of_template(tokenizer, chat, template)  # pyright: ignore  frozen: hashable
    return eos if closing is None else closing


@lru_cache(maxsize=8)  # asked for with every pair; the template can be set anew
def _closing_of_template(
    tokenizer: PreTrainedTokenizerBase, chat: ChatSpec, template: str
) -> int | None:
    """The added token that the template puts behind an answer, if it puts one there."""
    try:
        text = rendered(tokenizer, "question", chat, _ANSWER)
    except ModelError:  # a template that wants other messages says so at the first prompt
        return None
    tail = bare_ids(tokenizer, text.rpartition(_ANSWER)[2].lstrip())
    return tail[0] if tail and tail[0] in added_ids(tokenizer) else None


def end_ids(
    tokenizer: PreTrainedTokenizerBase, config: GenerationConfig | None, chat: ChatSpec | None
) -> Ids:
    """All tokens that end a completion, the closing one first.

    `config` is the model's own. Where transformers derived it from the model's config it may hold
    the default of the architecture, so only the tokenizer's special tokens are taken from it then.
    """
    named = None if config is None else config.eos_token_id
    ids = [named] if isinstance(named, int) else list(named or [])
    if getattr(config, "_from_model_config", False):
        ids = [each for each in ids if each in added_ids(tokenizer)]
    eos = tokenizer.eos_token_id
    assert isinstance(eos, int), "load_tokenizer refuses tokenizers without end-of-text"
    return tuple(dict.fromkeys((closing_id(tokenizer, chat), eos, *ids)))


def added_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of tokens that were added to the vocabulary, special ones and others."""
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


def completion_text(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], chat: ChatSpec | None
) -> str:
    """The text of a completion's tokens in front of its end; padding is left out, nothing else.

    Without `chat` it begins as it does behind a prompt: some tokenizers leave out the space before
    a text's first word, so the tokens are decoded behind others.
    """
    shown = [each for each in ids if each != tokenizer.pad_token_id]
    before, head = ((), "") if chat is not None else _some_text(tokenizer)
    whole = decoded(tokenizer, [*before, *shown])
    return whole.removeprefix(head) if whole.startswith(head) else decoded(tokenizer, shown)


@lru_cache(maxsize=8)  # asked for with every completion
def _some_text(tokenizer: PreTrainedTokenizerBase) -> tuple[Ids, str]:
    """Tokens of a short text, and the text that they are decoded to."""
    ids = bare_ids(tokenizer, "a")
    return ids, decoded(tokenizer, ids)
