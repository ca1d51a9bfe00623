"""A prompt's text as chat messages: a list of messages written as JSON, or one user message.

Knows nothing of tokenizers; `rendering.py` puts messages into a model's chat template.
"""

import json
from collections.abc import Mapping

from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.spec import ChatSpec

Message = dict[str, str]


def as_messages(value: object) -> list[Message] | None:
    """`value` as a list of messages with a role and a content, or None if it is something else."""
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
    """The messages that a prompt holds as JSON text, or None if it is plain text."""
    if not prompt.lstrip().startswith("["):
        return None
    try:
        return as_messages(json.loads(prompt))
    except (ValueError, RecursionError):
        return None


def talk_of(prompt: str) -> list[Message]:
    """The prompt as messages: those it holds, or itself as the user's one message."""
    return written_messages(prompt) or [{"role": "user", "content": prompt}]


def messages_of(prompt: str, chat: ChatSpec) -> list[Message]:
    """The conversation that the policy answers, the system prompt first if it brings none.

    Raises DataError if the last message is not the user's.
    """
    messages = talk_of(prompt)
    if messages[-1]["role"] != "user":
        raise DataError(
            f"prompt {prompt[:60]!r}: its last message is the {messages[-1]['role']}'s; "
            "a prompt ends with a message of the user, which the policy answers"
        )
    if chat.system_prompt is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": chat.system_prompt}, *messages]


def scored_text(prompt: str, completion: str, chat: ChatSpec | None) -> str:
    """What a reward that reads prompt and completion is shown.

    Of a chat that is the last user message, a newline and the completion: rewards judge text, and
    a template's marks are none.
    """
    if chat is None:
        return prompt + completion
    return f"{messages_of(prompt, chat)[-1]['content']}\n{completion}"
