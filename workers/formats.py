"""The shapes that public preference data has: cells of a row in, prompts and answers out.

Chat messages in the spellings of OpenAI and ShareGPT become ours (role and content, a text); the
transcripts of hh-rlhf are split into prompt and answers. What carries meaning and has no place
there is refused. Knows neither files nor specs.
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
"""Roles that are read, and what they are in a chat template."""
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
"""Names that others give to our columns, for messages."""


class UnreadableError(ValueError):
    """Messages that cannot be read as texts; begins with the place in the cell, as [2], or not."""


# --- cells ---------------------------------------------------------------------------------------


def is_text(value: object) -> bool:
    """A string that has a UTF-8 form; JSON can spell halves of characters, which have none."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def root(name: str, columns: Sequence[str]) -> str:
    """The column that a name leads into: `input` for `input.messages`, unless that is a column."""
    return name if name in columns else name.partition(".")[0]


def has(record: Mapping[str, object], name: str) -> bool:
    """Whether the record has the column, or the one that it leads into."""
    return name in record or root(name, ()) in record


def cell(record: Mapping[str, object], name: str) -> object:
    """The value of a column; of one inside another where the name has dots, and in lists of each.

    None where there is none.
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
    """Whether a cell says nothing: null, a blank text, an empty list, also written as JSON."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return value is None or (isinstance(value, list | Mapping) and not value)


def refused_column(record: Mapping[str, object]) -> str | None:
    """The column with something in it that a text model's template cannot be given here."""
    return next((name for name in record if name in _REFUSED and not is_empty(record[name])), None)


# --- messages ------------------------------------------------------------------------------------


def conversation(value: object) -> list[Message] | None:
    """`value` as chat messages in our spelling, or None if it is something else.

    A message may be {role, content} or {from, value}; one alone, a list, or an object that holds
    the list as `messages` or `conversations`. Raises UnreadableError.
    """
    if isinstance(value, Mapping):
        for name in ("messages", "conversations"):
            if isinstance(value.get(name), list):
                if (refused := refused_column(value)) is not None:
                    raise UnreadableError(f"has {refused}, which are not read")
                return conversation(value[name])
        value = _turned(value)
    if not isinstance(value, list) or not value or not _is_message(value[0]):
        return None
    return [_message(f"[{index}]", each) for index, each in enumerate(value)]


def written_conversation(text: str) -> str:
    """`text`, but where it is JSON of messages in another spelling, JSON of ours.

    Raises UnreadableError.
    """
    if not text.lstrip().startswith("["):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if _PRINTED.match(text):
            raise UnreadableError(
                "looks like a list of messages as Python prints it; write lists in JSON"
            ) from None
        return text
    talk = conversation(value)
    return text if talk is None or as_messages(value) == talk else json.dumps(talk)


def answer_cell(value: object) -> object:
    """The cell of an answer, parsed where it is a text that holds chat messages in JSON.

    Raises UnreadableError for a list of messages as Python prints it.
    """
    if not isinstance(value, str) or not _PRINTED.match(value):
        return value
    written_conversation(value)
    return json.loads(value)


def _turned(value: Mapping[str, object]) -> list[object]:
    """One message as a list; of lists of roles and contents, as old versions of `datasets` keep
    messages, a list of messages."""
    lists = {name: each for name, each in value.items() if isinstance(each, list)}
    if len(lists) < len(value) or not _is_message(value):
        return [value]
    if len({len(each) for each in lists.values()}) > 1:
        raise UnreadableError("has roles and contents of different number")
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
            f"{place} is a message {said}; tools and their calls are not read. Leave such rows "
            "out, or write the call into the content"
        )
    if name not in ROLES:
        raise UnreadableError(f"{place} has the role {role!r}; {', '.join(ROLES)} are read")
    thoughts = next((field for field in _THOUGHTS if not is_empty(value.get(field))), None)
    if thoughts is not None:
        raise UnreadableError(
            f"{place} has {thoughts}, which is not read; write it into the content as the model's "
            "chat template does, or remove it"
        )
    return {"role": ROLES[name], "content": _content(place, content)}


def _first(value: Mapping[str, object], *names: str) -> object:
    return next((value[name] for name in names if value.get(name) is not None), None)


def _content(place: str, content: object) -> str:
    """A text, or the texts of a list of parts one after the other."""
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
        raise UnreadableError(f"{place} has the content part {short(part)}; only text is read")
    return text


# --- rows that hold their prompt in another way --------------------------------------------------


def is_transcript(text: object) -> bool:
    """Whether a text is a dialogue as in hh-rlhf: turns that begin with Human: and Assistant:."""
    return isinstance(text, str) and text.lstrip().startswith("Human:") and _ANSWER in text


def split_transcripts(chosen: str, rejected: str) -> tuple[str, str, str] | None:
    """Prompt and answers of two transcripts: what they share up to the last `Assistant:`.

    None where they differ before the first one.
    """
    letters = enumerate(zip(chosen, rejected, strict=False))
    shared = next((i for i, (a, b) in letters if a != b), min(len(chosen), len(rejected)))
    end = chosen.rfind(_ANSWER, 0, shared)
    if end < 0:
        return None
    prompt = chosen[: end + len(_ANSWER)]
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]


def transcript_messages(prompt: str) -> list[Message]:
    """The turns of a transcript that ends where the assistant's answer starts."""
    _, *parts = _TURN.split("\n\n" + prompt.lstrip())
    turns = list(zip(parts[::2], parts[1::2], strict=True))
    return [{"role": ROLES[who.lower()], "content": text.strip()} for who, text in turns[:-1]]


def has_further_turns(answer: str) -> bool:
    """Whether the rest of a transcript goes on after the assistant's answer."""
    return "\n\nHuman:" in answer or _ANSWER in answer


def alpaca_prompt(record: Mapping[str, object]) -> object:
    """The prompt of a row with instruction, input and history; None for another row.

    The input follows the instruction on a line of its own; with a history it is a conversation.
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
    """A column that may be meant by one of ours: another name, or other capitals and spaces."""
    for name in (ours, *NEAR.get(ours, ())):
        for column in columns:
            if column.strip().lower() == name:
                return column
    return None


def advice(missing: str, record: Mapping[str, object]) -> str:
    """What to write in the spec for a row that lacks one of our columns."""
    columns = [str(name) for name in record]
    if missing in ("chosen", "rejected") and "label" in columns:
        return (
            "Rows of one completion and its label (as for KTO) are no pairs; give two completions "
            "of a prompt as chosen and rejected, or scores (stage: scored_completions)"
        )
    near = near_column(missing, columns)
    quoted = near if near is None or re.fullmatch(r"[\w.-]+", near) else json.dumps(near)
    remedy = f"Map it with entry.columns={{{missing}: {quoted or '...'}}}"
    if near is None and {"chosen", "rejected"} <= set(columns):
        remedy += (
            "; without such a column, both answers begin with the prompt: as lists of messages, or "
            "as texts with turns that begin with Human: and Assistant:"
        )
    return remedy
