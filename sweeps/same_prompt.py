"""Decides whether two prompts count as the same prompt; no other module does.

Differences in white space, Unicode normal form and zero-width characters are ignored. A text and a
list with one user message of that text are the same prompt. Case and all other characters matter.
"""

import json
import unicodedata
from typing import Any, cast

_WITHOUT_WIDTH: dict[int, str | int | None] = {0x200B: None, 0x2060: None, 0xFEFF: None}


def canonical_prompt(prompt: str) -> str:
    """A text that is equal for all prompts that count as the same. It is only used for comparison.

    A prompt is a text, or a conversation: a JSON list of messages.
    """
    talk = _conversation(prompt)
    if talk is None:
        return _canonical_text(prompt)
    match talk:
        case [{"role": "user", "content": str(content), **others}] if not others:
            return _canonical_text(content)
        case _:
            return json.dumps([_canonical(message) for message in talk])


def _conversation(prompt: str) -> list[dict[str, Any]] | None:
    if not prompt.lstrip().startswith("["):
        return None
    try:
        talk = json.loads(prompt)
    except (ValueError, RecursionError):
        return None
    if not isinstance(talk, list) or not talk:
        return None
    messages = cast("list[Any]", talk)
    return messages if all(isinstance(m, dict) and "role" in m for m in messages) else None


def _canonical(value: Any) -> Any:
    """Make every text in a message canonical, and put role and content before other fields."""
    if isinstance(value, str):
        return _canonical_text(value)
    if isinstance(value, list):
        return [_canonical(each) for each in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    fields = cast("dict[str, Any]", value)
    first = [name for name in ("role", "content") if name in fields]
    return {name: _canonical(fields[name]) for name in [*first, *sorted(fields.keys() - {*first})]}


def _canonical_text(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).translate(_WITHOUT_WIDTH).split())
