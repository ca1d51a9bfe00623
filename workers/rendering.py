"""Tokenizes prompts and answers for all stages.

Generation, the reference and the check of lengths use the same functions, so a policy is trained on
exactly the prompt tokens that it was sampled from. Special tokens occur once: the token that a
tokenizer adds before every text is left out if the text begins with it (a chat template was already
applied), and a token that it adds after every text is always left out.
"""

import datetime
import re
from collections.abc import Sequence
from functools import lru_cache

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from prefsweep.sweeps.errors import DataError, ModelError
from prefsweep.sweeps.spec import ChatSpec
from prefsweep.workers.chat import messages_of, written_messages

Ids = tuple[int, ...]


def token_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    completion: str = "",
    chat: ChatSpec | None = None,
) -> Ids:
    """IDs of the prompt followed by the completion, as one text.

    With `chat`, the prompt is the rendered conversation, up to the start of the answer. Without it,
    an empty prompt is the start of a text: the tokenizer's first token (bos), or else its
    end-of-text token, after which a new text begins. Raises ModelError for a tokenizer without a
    chat template, and DataError for messages without `chat`.
    """
    if chat is not None:
        return bare_ids(tokenizer, rendered(tokenizer, prompt, chat) + completion)
    if written_messages(prompt) is not None:
        raise DataError(
            f"prompt {prompt[:60]!r} is a list of chat messages, but policy.chat is not set; "
            "set policy.chat: {} to use the tokenizer's chat template"
        )
    if not prompt:
        return start_token(tokenizer), *bare_ids(tokenizer, completion)
    return text_ids(tokenizer, prompt + completion)


def answered_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, chat: ChatSpec
) -> Ids:
    """IDs of the conversation with the answer as its last message, rendered by the template."""
    return bare_ids(tokenizer, rendered(tokenizer, prompt, chat, answer))


def rendered(
    tokenizer: PreTrainedTokenizerBase, prompt: str, chat: ChatSpec, answer: str | None = None
) -> str:
    """The conversation in the tokenizer's chat template.

    Without `answer`, it ends with the start of an answer (add_generation_prompt); with it, the
    answer is the last message.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"policy.chat is set, but the tokenizer of {tokenizer.name_or_path} has no chat "
            "template; remove policy.chat or use an instruct model"
        )
    messages = messages_of(prompt, chat)
    if answer is not None:
        messages = [*messages, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(
            messages,
            chat_template=dated(tokenizer.get_chat_template(), chat.date),
            add_generation_prompt=answer is None,
            tokenize=False,
        )
    except TemplateError as error:
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path} refuses the messages of prompt "
            f"{prompt[:60]!r}: {error}"
        ) from error
    assert isinstance(text, str)
    return text


@lru_cache(maxsize=8)
def dated(template: str, day: datetime.date) -> str:
    """The template with `day` instead of today's date (strftime_now).

    Raises ModelError if the template does not contain the format of the date as a literal.
    """

    def on_day(call: re.Match[str]) -> str:
        return repr(day.strftime(call["format"]))

    fixed = re.sub(
        r"\bstrftime_now\(\s*(?:format\s*=\s*)?(['\"])(?P<format>[^'\"\\]*)\1\s*\)",
        on_day,
        template,
    )
    if re.search(r"\bstrftime_now\b(?!\s+is\s+(?:not\s+)?defined\b)", fixed):
        raise ModelError(
            "the chat template writes today's date (strftime_now) in a way that cannot be "
            "fixed to policy.chat.date; write the format as a literal in the template, as in "
            'strftime_now("%d %b %Y")'
        )
    return fixed


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Ids:
    """IDs of a text, after the token that the tokenizer adds before a text; none is added at the
    end."""
    start = start_ids(tokenizer)
    if start and text.lstrip().startswith(decoded(tokenizer, start)):
        start = ()
    return *start, *bare_ids(tokenizer, text)


def finished_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Ids:
    """As `text_ids`, with the end-of-text token at the end once."""
    end = str(tokenizer.eos_token)
    return text_ids(tokenizer, text.removesuffix(end) + end)


@lru_cache(maxsize=8)  # called for every text
def start_ids(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The IDs that the tokenizer adds before every text: its first token (bos), or nothing."""
    bare, whole = bare_ids(tokenizer, "a"), tuple(tokenizer("a")["input_ids"])  # pyright: ignore
    if not bare or bare[0] not in whole:
        return ()
    return whole[: whole.index(bare[0])]


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """ID of the token after which a text without a prompt starts."""
    first = tokenizer.bos_token_id
    token = tokenizer.eos_token_id if first is None else first
    assert isinstance(token, int), "load_tokenizer refuses tokenizers without end-of-text"
    return token


def bare_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Ids:
    """IDs of the text only, without tokens that the tokenizer adds."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of all tokens, including special ones."""
    text = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text
