"""Prompts as chat messages: a JSON list of messages, or a text as one user message.

This module does not use tokenizers; `rendering.py` renders messages with a model's chat template.
"""

import json
from collections.abc import Mapping

from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.spec import ChatSpec

Message = dict[str, str]


def as_messages(value: object) -> list[Message] | None:
    """`value` as a list of messages with a role and a content; None if it is not such a list."""
    if not isinstance(value, list) or not value:
        return None
    messages: list[Message] = []
    for each in value:
        role, content = (
            (each.get("role"), each.get("content")) if isinstance(each, Mapping) else (None, None)
        )
        if not isinstance(role, str) or not isinstance(content, str):
            return None
        messages.append({"role": role, "content": content})
    return messages


def written_messages(prompt: str) -> list[Message] | None:
    """The messages of a prompt that is JSON text; None if it is plain text."""
    if not prompt.lstrip().startswith("["):
        return None
    try:
        return as_messages(json.loads(prompt))
    except (ValueError, RecursionError):
        return None


def talk_of(prompt: str) -> list[Message]:
    """The prompt as messages: its JSON list, or its text as one user message."""
    return written_messages(prompt) or [{"role": "user", "content": prompt}]


def messages_of(prompt: str, chat: ChatSpec) -> list[Message]:
    """The conversation that the policy answers, with `chat`'s system prompt if it has none.

    Raises DataError if the last message is not a user message.
    """
    messages = talk_of(prompt)
    if messages[-1]["role"] != "user":
        raise DataError(
            f"prompt {prompt[:60]!r}: its last message has the role {messages[-1]['role']}; "
            "a prompt must end with a user message, which the policy answers"
        )
    if chat.system_prompt is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": chat.system_prompt}, *messages]


def scored_text(prompt: str, completion: str, chat: ChatSpec | None) -> str:
    """The text that a reward with `over: full` scores.

    For a chat, it is the last user message, a newline and the completion, without the tokens of
    the chat template, because rewards score plain text.
    """
    if chat is None:
        return prompt + completion
    return f"{messages_of(prompt, chat)[-1]['content']}\n{completion}"
