"""Reads the prompt, completions and scores of one row of the user's data.

Texts and chat messages are read, and rows whose prompt is in a conversation, in an instruction or
at the start of both answers (see `formats.py`). Each cell is checked; the message for an invalid
cell names its row and column.
"""

import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from numbers import Real

from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.validation_messages import listed
from prefsweep.workers.chat import Message, talk_of
from prefsweep.workers.files import short
from prefsweep.workers.formats import (
    UnreadableError,
    advice,
    alpaca_prompt,
    answer_cell,
    cell,
    conversation,
    has,
    has_further_turns,
    is_empty,
    is_text,
    is_transcript,
    refused_column,
    root,
    split_transcripts,
    transcript_messages,
    written_conversation,
)

SYSTEM = ("system", "system_prompt")
"""Columns that may contain the system message of the row's prompt."""
ALSO_READ = (*SYSTEM, "tools", "functions", "chat_template_kwargs", "image", "images", "video")
ALSO_READ += ("videos", "audio", "audios", "conversations", "messages", "rejected_response")
ALSO_READ += ("instruction", "input", "history")
"""Columns that are read in addition to those of the spec."""
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the data, with the names that messages need."""

    place: str
    record: Mapping[str, object]
    columns: Mapping[str, str]
    """prefsweep's column names -> the data's."""
    mapped: frozenset[str]
    """prefsweep's column names that the spec maps."""
    chat: bool
    """Whether the policy reads chat messages."""
    used: set[str] = field(default_factory=set[str])
    """Columns that were read; shared by all rows of the data."""

    def require(self, names: Sequence[str]) -> None:
        """Raises DataError if a required column is missing, or an unsupported one is not empty."""
        for name in names:
            if not has(self.record, self.columns[name]) and not self._is_elsewhere(name):
                raise DataError(
                    f"{self.place}: there is no column {self.columns[name]!r}; the columns are "
                    f"{listed(self.record)}. {advice(name, self.record)}"
                )
        if (refused := refused_column(self.record)) is not None:
            raise DataError(
                f"{self.place}: column {refused!r} is {short(self.record[refused])}; tools, images "
                "and the like are not supported. Leave such rows out, or remove the column"
            )

    # --- prompts and pairs -----------------------------------------------------------------------

    def prompt(self) -> str:
        """The prompt; messages as JSON text."""
        value = self._prompt_cell()
        if value is None:
            value = self._value("prompt")
        talk = self._talk("prompt", value)
        if talk is not None:
            self._require_question(talk)
            return json.dumps(self._with_system(talk))
        text = self._text("prompt", "", value)
        if not text.strip():
            raise self._error("prompt", "is empty; every row needs a prompt")
        if self.chat and is_transcript(text) and text.rstrip().endswith("\n\nAssistant:"):
            return json.dumps(self._with_system(transcript_messages(text.rstrip())))
        return self._plain_prompt(text)

    def pair(self) -> tuple[str, str, str] | None:
        """Prompt, chosen and rejected answer; None for a transcript with more turns after them."""
        if self._prompt_cell() is None and self._has_transcripts():
            return self._transcript_pair()
        chosen, rejected = self._value("chosen"), self._value("rejected")
        if chosen is None and "messages" in self.record and "chosen" not in self.record:
            self.used.update(("messages", "rejected_response"))
            chosen, rejected = self.record["messages"], self.record.get("rejected_response")
        before, good = self._answer("chosen", "", chosen)
        also_before, bad = self._answer("rejected", "", rejected)
        if before and also_before and before != also_before:
            raise self._error("rejected", "has other messages before the last one than chosen has")
        return self._asked(before or also_before), good, bad

    def _asked(self, before: list[Message]) -> str:
        """The prompt of answers with these messages before them."""
        if self._prompt_cell() is None:
            if not before:
                raise self._error(
                    "prompt", "is missing, and the answers contain no prompt messages"
                )
            return self._conversation_before(before)
        prompt = self.prompt()
        talk = talk_of(prompt)
        without_system = [message for message in talk if message["role"] != "system"]
        if before in ([], talk, without_system):
            return prompt
        if len(without_system) == 1 and without_system[0] in before:
            return self._conversation_before(before)
        raise self._error("chosen", "has other messages before the last one than its prompt")

    def _conversation_before(self, before: list[Message]) -> str:
        if before[-1]["role"] != "user":
            raise self._error(
                "chosen",
                f"has a message of the {before[-1]['role']} before the last, not the user's",
            )
        return json.dumps(self._with_system(before))

    def _transcript_pair(self) -> tuple[str, str, str] | None:
        parts = split_transcripts(str(self._value("chosen")), str(self._value("rejected")))
        if parts is None:
            raise self._error("rejected", "is a transcript that shares no turn with chosen")
        prompt, chosen, rejected = parts
        if not self.chat:
            return prompt, chosen, rejected
        if has_further_turns(chosen) or has_further_turns(rejected):
            return None
        talk = self._with_system(transcript_messages(prompt))
        return json.dumps(talk), chosen.strip(), rejected.strip()

    # --- completions and scores ------------------------------------------------------------------

    def is_single(self) -> bool:
        """Whether the row has one completion, not a list."""
        value, score = self._value("completions"), self.columns.get("scores")
        if isinstance(value, str):
            written = _written_list(value)
            if score is None:
                return written is None and not value.lstrip().startswith("[")
            return written is None and not _is_list(self._value("scores"))
        if score is not None and _is_list(self._value("scores")):
            return False
        try:
            talk = conversation(value)
        except UnreadableError:
            return False
        return talk is not None and (score is not None or any(m["role"] == "user" for m in talk))

    def completions(self) -> list[str]:
        """The completions of the row."""
        if self.is_single():
            return [self._text("completions", "", self._value("completions"))]
        texts = self._list("completions")
        if not texts:
            raise self.too_few(0)
        return [self._text("completions", f"[{i}]", text) for i, text in enumerate(texts)]

    def scored_completions(self) -> list[tuple[str, float]]:
        """The completions of the row with their scores."""
        if self.is_single():
            score = self._number("scores", "", self._value("scores"))
            return [(self.completions()[0], score)]
        texts, scores = self.completions(), self._list("scores")
        if len(texts) != len(scores):
            raise self._error(
                "scores",
                f"has {len(scores)} scores for {len(texts)} completions; give one per completion",
            )
        numbers = [self._number("scores", f"[{i}]", score) for i, score in enumerate(scores)]
        return list(zip(texts, numbers, strict=True))

    def too_few(self, num: int) -> DataError:
        """The error for a prompt with fewer than two completions."""
        number = "one completion" if num else "no completions"
        return self._error("completions", f"has {number}; a pair needs at least two")

    def optional_number(self, name: str) -> float | None:
        """A score; None if it is missing."""
        value = self._value(name)
        if value is None or value == "":
            return None
        return self._number(name, "", value)

    # --- cells -----------------------------------------------------------------------------------

    def _is_elsewhere(self, name: str) -> bool:
        """Whether a missing column's content is in another form in the row."""
        if name in self.mapped:
            return False
        if name == "prompt":
            return self._prompt_cell() is not None or (
                "chosen" in self.columns and self._has_prompt_in_answers()
            )
        has_messages = isinstance(self.record.get("messages"), list)
        return (
            name in ("chosen", "rejected") and has_messages and "rejected_response" in self.record
        )

    def _prompt_cell(self) -> object:
        """The cell with the prompt; None if it can only be in the answers."""
        value = self._value("prompt")
        if value is not None or "prompt" in self.mapped:
            return value
        if "chosen" in self.columns and self._has_prompt_in_answers():
            return None
        if (talk := self.record.get("conversations")) is not None:
            self.used.add("conversations")
            return talk
        if (text := alpaca_prompt(self.record)) is not None:
            self.used.update(("instruction", "input", "history"))
        return text

    def _has_prompt_in_answers(self) -> bool:
        if self._has_transcripts():
            return True
        chosen = self._value("chosen")
        if chosen is None:
            chosen = self.record.get("messages") if "rejected_response" in self.record else None
        return isinstance(chosen, list) and len(chosen) > 1

    def _has_transcripts(self) -> bool:
        return is_transcript(self._value("chosen")) and is_transcript(self._value("rejected"))

    def _plain_prompt(self, text: str) -> str:
        """The prompt of a text; with a system message, it is a conversation."""
        if not self.chat:
            return text
        asked = talk_of(text)
        self._require_question(asked)
        with_system = self._with_system(asked)
        return text if with_system == asked else json.dumps(with_system)

    def _require_question(self, talk: list[Message]) -> None:
        if (role := talk[-1]["role"]) != "user":
            raise self._error(
                "prompt",
                f"ends with a message of the {role}; a prompt must end with a user message, which "
                "the policy answers",
            )

    def _with_system(self, talk: list[Message]) -> list[Message]:
        """The conversation, with the row's system message first if it has one."""
        name = next((name for name in SYSTEM if not is_empty(self.record.get(name))), None)
        self.used.update(SYSTEM)
        if name is None or name in self.columns.values():
            return talk
        text = self.record[name]
        if not is_text(text):
            raise DataError(f"{self.place}: column {name!r} is {short(text)}, not a text")
        message = {"role": "system", "content": str(text)}
        if talk[0]["role"] != "system":
            return [message, *talk]
        if talk[0] != message:
            raise DataError(
                f"{self.place}: column {name!r} is {short(text)}, but the prompt contains another "
                "system message; remove one of them"
            )
        return talk

    def _talk(self, name: str, value: object, index: str = "") -> list[Message] | None:
        """The cell as chat messages; None for other values, or if the policy reads no messages."""
        if not self.chat:
            return None
        try:
            return conversation(value)
        except UnreadableError as error:
            raise self._error(name, f"{index}{_joined(error)}") from None

    def _answer(self, name: str, index: str, value: object) -> tuple[list[Message], str]:
        """The messages before the assistant's last one, and its text."""
        try:
            value = answer_cell(value)
        except UnreadableError as error:
            raise self._error(name, f"{index}{_joined(error)}") from None
        talk = self._talk(name, value, index)
        if talk is None:
            return [], self._plain(name, index, value)
        if talk[-1]["role"] != "assistant":
            raise self._error(
                name, f"{index} ends with a message of the {talk[-1]['role']}, not the assistant's"
            )
        return talk[:-1], talk[-1]["content"]

    def _text(self, name: str, index: str, value: object) -> str:
        """A text, or with `chat` the assistant's answer at the end of a list of messages."""
        if name == "prompt":
            return self._plain(name, index, value)
        before, text = self._answer(name, index, value)
        if before:
            prompt = self.prompt()
            asked = talk_of(prompt)
            if before not in (asked, [m for m in asked if m["role"] != "system"]):
                raise self._error(
                    name, f"{index} has other messages before the last one than its prompt"
                )
        return text

    def _plain(self, name: str, index: str, value: object) -> str:
        """The text in a cell."""
        if isinstance(value, list | Mapping) and _is_messages(value):
            raise self._error(
                name,
                f"{index} is a list of messages, not a text; set policy.chat, or apply the chat "
                "template to it first",
            )
        if not is_text(value):
            raise self._error(name, f"{index} is {short(value)}, not a text")
        try:
            return written_conversation(str(value)) if name == "prompt" else str(value)
        except UnreadableError as error:
            raise self._error(name, f"{index}{_joined(error)}") from None

    def _list(self, name: str) -> list[object]:
        value = self._value(name)
        if isinstance(value, str):  # a CSV cell
            written = _written_list(value)
            if written is None:
                raise self._error(name, f"is {short(value)}, not a list (in JSON)")
            value = written
        if not isinstance(value, list):
            raise self._error(name, f"is {short(value)}, not a list")
        return value

    def _number(self, name: str, index: str, value: object) -> float:
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, Real | Decimal):
            raise self._error(name, f"{index} is {short(value)}, not a number")
        number = math.inf
        with contextlib.suppress(OverflowError):  # integers can be too large
            number = float(value)
        if not math.isfinite(number):
            raise self._error(name, f"{index} is {short(value)}; a score must be a finite number")
        return number

    def _value(self, name: str) -> object:
        column = self.columns[name]
        if column in self.record:
            self.used.add(column)
            return self.record[column]
        self.used.add(root(column, ()))
        return cell(self.record, column)

    def _error(self, name: str, what: str) -> DataError:
        space = "" if what.startswith("[") else " "
        return DataError(f"{self.place}: column {self.columns[name]!r}{space}{what.strip()}")


def _is_messages(value: object) -> bool:
    try:
        return conversation(value) is not None
    except UnreadableError:
        return True


def _is_list(value: object) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))


def _written_list(text: str) -> list[object] | None:
    """The list that a text contains as JSON; None if it is not one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _joined(error: UnreadableError) -> str:
    said = str(error)
    return said if said.startswith("[") else f" {said}"
