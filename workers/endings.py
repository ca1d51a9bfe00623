"""Where an answer ends: the tokens at which sampling stops, and the text before them.

A text ends at the tokenizer's end-of-text token, at the tokens in the model's generation config
(eos_token_id, often a list), and with `chat` at the token that the chat template writes after an
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


@lru_cache(maxsize=8)  # called for every pair; the template can be replaced
def _closing_of_template(
    tokenizer: PreTrainedTokenizerBase, chat: ChatSpec, template: str
) -> int | None:
    """The added token that the template writes after an answer, if any."""
    try:
        text = rendered(tokenizer, "question", chat, _ANSWER)
    except ModelError:  # a template that refuses these messages raises again at the first prompt
        return None
    tail = bare_ids(tokenizer, text.rpartition(_ANSWER)[2].lstrip())
    return tail[0] if tail and tail[0] in added_ids(tokenizer) else None


def end_ids(
    tokenizer: PreTrainedTokenizerBase, config: GenerationConfig | None, chat: ChatSpec | None
) -> Ids:
    """All tokens that end a completion, the closing one first.

    `config` is the model's generation config. If transformers derived it from the model's config,
    it may contain the architecture's default; then only the tokenizer's special tokens are used.
    """
    named = None if config is None else config.eos_token_id
    ids = [named] if isinstance(named, int) else list(named or [])
    if getattr(config, "_from_model_config", False):
        ids = [each for each in ids if each in added_ids(tokenizer)]
    eos = tokenizer.eos_token_id
    assert isinstance(eos, int), "load_tokenizer refuses tokenizers without end-of-text"
    return tuple(dict.fromkeys((closing_id(tokenizer, chat), eos, *ids)))


def added_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """IDs of tokens that were added to the vocabulary, special or not."""
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


def completion_text(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], chat: ChatSpec | None
) -> str:
    """The text of a completion's tokens before its end; only padding is left out.

    Without `chat`, the text begins as it does after a prompt: some tokenizers drop the space before
    the first word of a text, so the tokens are decoded after others.
    """
    shown = [each for each in ids if each != tokenizer.pad_token_id]
    before, head = ((), "") if chat is not None else _some_text(tokenizer)
    whole = decoded(tokenizer, [*before, *shown])
    return whole.removeprefix(head) if whole.startswith(head) else decoded(tokenizer, shown)


@lru_cache(maxsize=8)  # called for every completion
def _some_text(tokenizer: PreTrainedTokenizerBase) -> tuple[Ids, str]:
    """Tokens of a short text, and their decoded text."""
    ids = bare_ids(tokenizer, "a")
    return ids, decoded(tokenizer, ids)
