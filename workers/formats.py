"""Converts cells of common public preference data to prompts and answers.

Chat messages in the formats of OpenAI and ShareGPT become messages with role and content (a text).
Transcripts of hh-rlhf are split into prompt and answers. Content that cannot be converted, such as
tool calls, is refused. This module uses neither files nor specs.
"""

import json
import re
from collections.abc import Mapping, Sequence

from prefsweep.workers.chat import Message, as_messages
from prefsweep.workers.files import short

ROLES: Mapping[str, str] = {
    **{role: role for role in ("system", "developer", "user", "assistant")},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "ai", "model"), "assistant"),
}
"""Supported roles -> their names in a chat template."""
_TOOL_ROLES = frozenset(
    {"tool", "tool_call", "tool_response", "function", "function_call", "observation", "ipython"}
)
_TOOL_FIELDS = ("tool_calls", "function_call", "tool_call_id")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_REFUSED = frozenset({"tools", "functions", "chat_template_kwargs", *_MEDIA})
_TEXT_PARTS = ("text", "input_text", "output_text")
_PRINTED = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ANSWER = "\n\nAssistant:"
NEAR: Mapping[str, Sequence[str]] = {
    "prompt": (
        *("question", "instruction", "query", "input", "problem", "context", "text"),
        *("messages", "conversations", "conversation"),
    ),
    "chosen": ("chosen_response", "preferred", "preferred_output", "accepted", "response_chosen"),
    "rejected": ("rejected_response", "non_preferred_output", "dispreferred", "response_rejected"),
    "completions": (
        *("generations", "responses", "outputs", "answers", "candidates"),
        *("completion", "response", "output", "answer", "generation"),
    ),
    "scores": ("ratings", "rating", "rewards", "score", "reward", "labels"),
    "chosen_score": ("score_chosen", "chosen_rating", "rating_chosen", "chosen_reward"),
    "rejected_score": ("score_rejected", "rejected_rating", "rating_rejected", "rejected_reward"),
}
"""prefsweep's column names -> other common names of the column, for messages."""


class UnreadableError(ValueError):
    """Messages that cannot be read as texts; may begin with the place in the cell, such as [2]."""


# --- cells ---------------------------------------------------------------------------------------


def is_text(value: object) -> bool:
    """Whether a value is a string that UTF-8 can encode; JSON can contain lone surrogates."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def root(name: str, columns: Sequence[str]) -> str:
    """The column of a name with dots: `input` for `input.messages`, unless that is a column."""
    return name if name in columns else name.partition(".")[0]


def has(record: Mapping[str, object], name: str) -> bool:
    """Whether the record has the column of this name."""
    return name in record or root(name, ()) in record


def cell(record: Mapping[str, object], name: str) -> object:
    """The value of a column. A name with dots is a field inside a column, or inside each entry of
    a list in it.

    None if there is no such value.
    """
    if name in record or "." not in name:
        return record.get(name)
    first, *inner = name.split(".")
    value = record.get(first)
    for key in inner:
        value = _inside(value, key)
    return value


def _inside(value: object, key: str) -> object:
    if isinstance(value, list):
        return [_inside(each, key) for each in value]
    return value.get(key) if isinstance(value, Mapping) else None


def is_empty(value: object) -> bool:
    """Whether a cell is empty: null, blank text or an empty list, also in JSON."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return value is None or (isinstance(value, list | Mapping) and not value)


def refused_column(record: Mapping[str, object]) -> str | None:
    """A column that is not empty and that is not supported, such as tools or images."""
    return next((name for name in record if name in _REFUSED and not is_empty(record[name])), None)


# --- messages ------------------------------------------------------------------------------------


def conversation(value: object) -> list[Message] | None:
    """`value` as chat messages with role and content; None if it is not a conversation.

    A message may be {role, content} or {from, value}. The value may be one message, a list, or an
    object with the list as `messages` or `conversations`. Raises UnreadableError.
    """
    if isinstance(value, Mapping):
        for name in ("messages", "conversations"):
            if isinstance(value.get(name), list):
                if (refused := refused_column(value)) is not None:
                    raise UnreadableError(f"has {refused}, which are not supported")
                return conversation(value[name])
        value = _turned(value)
    if not isinstance(value, list) or not value or not _is_message(value[0]):
        return None
    return [_message(f"[{index}]", each) for index, each in enumerate(value)]


def written_conversation(text: str) -> str:
    """`text`; if it is JSON of messages in another format, JSON of messages with role and content.

    Raises UnreadableError.
    """
    if not text.lstrip().startswith("["):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if _PRINTED.match(text):
            raise UnreadableError(
                "looks like a list of messages in Python's notation; write lists in JSON"
            ) from None
        return text
    talk = conversation(value)
    return text if talk is None or as_messages(value) == talk else json.dumps(talk)


def answer_cell(value: object) -> object:
    """The cell of an answer, parsed if it is chat messages in JSON.

    Raises UnreadableError for a list of messages in Python's notation.
    """
    if not isinstance(value, str) or not _PRINTED.match(value):
        return value
    written_conversation(value)
    return json.loads(value)


def _turned(value: Mapping[str, object]) -> list[object]:
    """A list of messages, from one message or from lists of roles and contents (as in old versions
    of `datasets`)."""
    lists = {name: each for name, each in value.items() if isinstance(each, list)}
    if len(lists) < len(value) or not _is_message(value):
        return [value]
    if len({len(each) for each in lists.values()}) > 1:
        raise UnreadableError("has different numbers of roles and contents")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and (
        value.get("role") is not None or value.get("from") is not None
    )


def _message(place: str, value: object) -> Message:
    if not isinstance(value, Mapping) or not _is_message(value):
        raise UnreadableError(f"{place} is {short(value)}, not a message with role and content")
    role, content = _first(value, "role", "from"), _first(value, "content", "value")
    name = role.strip().lower() if isinstance(role, str) else ""
    called = next((field for field in _TOOL_FIELDS if not is_empty(value.get(field))), None)
    if called is not None or name in _TOOL_ROLES:
        said = f"of the role {role!r}" if called is None else f"with {called}"
        raise UnreadableError(
            f"{place} is a message {said}; tools and tool calls are not supported. Leave such rows "
            "out, or write the call into the content"
        )
    if name not in ROLES:
        raise UnreadableError(f"{place} has the role {role!r}; supported are {', '.join(ROLES)}")
    thoughts = next((field for field in _THOUGHTS if not is_empty(value.get(field))), None)
    if thoughts is not None:
        raise UnreadableError(
            f"{place} has {thoughts}, which is not supported; write it into the content as the "
            "model's chat template does, or remove it"
        )
    return {"role": ROLES[name], "content": _content(place, content)}


def _first(value: Mapping[str, object], *names: str) -> object:
    return next((value[name] for name in names if value.get(name) is not None), None)


def _content(place: str, content: object) -> str:
    """A text, or the joined texts of a list of parts."""
    if isinstance(content, list):
        content = "".join(_part(place, part) for part in content)
    if not is_text(content):
        raise UnreadableError(f"{place} has the content {short(content)}, not a text")
    return str(content)


def _part(place: str, part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind not in _TEXT_PARTS or not isinstance(text, str):
        raise UnreadableError(f"{place} has the content part {short(part)}; only text is supported")
    return text


# --- rows with another form of prompt ------------------------------------------------------------


def is_transcript(text: object) -> bool:
    """Whether a text is a dialogue as in hh-rlhf: its turns begin with Human: and Assistant:."""
    return isinstance(text, str) and text.lstrip().startswith("Human:") and _ANSWER in text


def split_transcripts(chosen: str, rejected: str) -> tuple[str, str, str] | None:
    """The prompt (the common part up to its last `Assistant:`) and the answers of two transcripts.

    None if they differ before the first `Assistant:`.
    """
    letters = enumerate(zip(chosen, rejected, strict=False))
    shared = next((i for i, (a, b) in letters if a != b), min(len(chosen), len(rejected)))
    end = chosen.rfind(_ANSWER, 0, shared)
    if end < 0:
        return None
    prompt = chosen[: end + len(_ANSWER)]
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]


def transcript_messages(prompt: str) -> list[Message]:
    """The turns of a transcript that ends before the assistant's answer."""
    _, *parts = _TURN.split("\n\n" + prompt.lstrip())
    turns = list(zip(parts[::2], parts[1::2], strict=True))
    return [{"role": ROLES[who.lower()], "content": text.strip()} for who, text in turns[:-1]]


def has_further_turns(answer: str) -> bool:
    """Whether there are more turns after the assistant's answer."""
    return "\n\nHuman:" in answer or _ANSWER in answer


def alpaca_prompt(record: Mapping[str, object]) -> object:
    """The prompt of a row with instruction, input and history; None for other rows.

    The input follows the instruction on a new line; with a history the prompt is a conversation.
    """
    instruction, more = record.get("instruction"), record.get("input")
    if not isinstance(instruction, str):
        return None
    text = instruction if is_empty(more) else f"{instruction}\n{more}"
    history = record.get("history")
    if is_empty(history):
        return text
    turns = history if isinstance(history, list) else [history]
    talk: list[object] = []
    for turn in turns:
        question, answer = turn if isinstance(turn, list) and len(turn) == 2 else (None, None)
        talk += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*talk, {"role": "user", "content": text}]


# --- advice --------------------------------------------------------------------------------------


def near_column(ours: str, columns: Sequence[str]) -> str | None:
    """A column that may be the one wanted: a known other name, or other capitals and spaces."""
    for name in (ours, *NEAR.get(ours, ())):
        for column in columns:
            if column.strip().lower() == name:
                return column
    return None


def advice(missing: str, record: Mapping[str, object]) -> str:
    """The remedy for a row without a required column: what to write in the spec."""
    columns = [str(name) for name in record]
    if missing in ("chosen", "rejected") and "label" in columns:
        return (
            "Rows with one completion and its label (as for KTO) are not pairs; use two "
            "completions of a prompt as chosen and rejected, or scores (stage: scored_completions)"
        )
    near = near_column(missing, columns)
    quoted = near if near is None or re.fullmatch(r"[\w.-]+", near) else json.dumps(near)
    remedy = f"Map it with entry.columns={{{missing}: {quoted or '...'}}}"
    if near is None and {"chosen", "rejected"} <= set(columns):
        remedy += (
            "; without such a column, both answers must begin with the prompt: as lists of "
            "messages, or as texts with turns that begin with Human: and Assistant:"
        )
    return remedy
