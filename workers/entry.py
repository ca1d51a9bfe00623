"""Your own data in, records of the stage that it enters at out.

Every row is checked; what cannot be used is refused with its row number. It scores, ranks and pairs
nothing. Completions are taken as finished ones: the end-of-text token may follow them.
"""

import contextlib
import json
import math
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from prefsweep.sweeps.entry import OPTIONAL, REQUIRED, EntrySpec
from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.records import (
    Completion,
    PreferencePair,
    Prompt,
    ScoredCompletion,
    prompt_id,
)
from prefsweep.sweeps.spec import DatasetText, FileText, PairsSpec, Prompts
from prefsweep.workers.chat import as_messages, written_messages
from prefsweep.workers.corpus import is_text, load_records, short, source_identity
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.pairs import split_of
from prefsweep.workers.prompts import make_prompts

Notes = dict[str, float]
"""Counts for the report."""
FINISH_REASON = "eos"
_Score = float | None
_Item = TypeVar("_Item")


def entry_identity(entry: EntrySpec) -> str:
    """What stands for the data's content: SHA-256, or hub id and commit. Raises DataError."""
    return source_identity(_source(entry))


def read_prompts(entry: EntrySpec, *, chat: bool = False) -> tuple[list[Prompt], Notes]:
    """The distinct prompts, in order. With `chat`, prompts and completions may be chat messages.

    Raises DataError, as all readers here.
    """
    rows, repeated = _distinct((row.prompt(), None) for row in _rows(entry, chat))
    return [Prompt(prompt_id(text), text) for text in rows], _repeated(repeated)


def read_completions(entry: EntrySpec, *, chat: bool = False) -> tuple[list[Completion], Notes]:
    """All completions of every prompt's first row."""
    rows, repeated = _distinct((row.prompt(), row.completions()) for row in _rows(entry, chat))
    completions = [
        Completion(key, index, prompt, text, FINISH_REASON)
        for prompt, texts in rows.items()
        for key in [prompt_id(prompt)]
        for index, text in enumerate(texts)
    ]
    return completions, _repeated(repeated)


def read_scored_completions(
    entry: EntrySpec, *, chat: bool = False
) -> tuple[list[ScoredCompletion], Notes]:
    """All completions of every prompt's first row, with their scores."""
    rows, repeated = _distinct(
        (row.prompt(), row.scored_completions()) for row in _rows(entry, chat)
    )
    completions = [
        ScoredCompletion(key, index, prompt, text, FINISH_REASON, score)
        for prompt, scored in rows.items()
        for key in [prompt_id(prompt)]
        for index, (text, score) in enumerate(scored)
    ]
    return completions, _repeated(repeated)


def read_pairs(
    entry: EntrySpec, spec: PairsSpec, *, chat: bool = False
) -> tuple[list[PreferencePair], Notes]:
    """The pairs, those of a prompt together; a pair that occurs twice is taken once."""
    by_prompt: dict[str, dict[tuple[str, str], tuple[_Score, _Score]]] = {}
    repeated = same = 0
    for row in _rows(entry, chat):
        prompt, chosen, rejected = row.prompt(), row.text("chosen"), row.text("rejected")
        scores = row.optional_number("chosen_score"), row.optional_number("rejected_score")
        pairs = by_prompt.setdefault(prompt, {})
        repeated += (chosen, rejected) in pairs
        same += chosen == rejected
        if chosen != rejected:
            pairs.setdefault((chosen, rejected), scores)
    pairs = [
        PreferencePair(
            pair_id=f"{key}-{index}",
            prompt_id=key,
            split=split_of(key, spec),
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            chosen_score=chosen_score,
            rejected_score=rejected_score,
            chosen_finish_reason=FINISH_REASON,
            rejected_finish_reason=FINISH_REASON,
        )
        for prompt, texts in by_prompt.items()
        for key in [prompt_id(prompt)]
        for index, ((chosen, rejected), (chosen_score, rejected_score)) in enumerate(texts.items())
    ]
    num_test = sum(pair.split == "test" for pair in pairs)
    if num_test == len(pairs):
        raise DataError(
            f"entry: there is no pair to train on ({num_test} in the test split, {same} with equal "
            "texts); give more prompts or lower pairs.test_fraction"
        )
    return pairs, {
        "prompts with pairs": len({pair.prompt_id for pair in pairs}),
        "dropped: same text": same,
        "dropped: repeated pair": repeated,
        "test pairs": num_test,
    }


# --- prompts to evaluate with --------------------------------------------------------------------


def held_out_prompts(
    spec: Prompts, source: ModelSource, entered: Collection[str]
) -> tuple[list[Prompt], Notes]:
    """The held-out part of a prompts section, without the prompt ids that the data has.

    Where num_train is given, that many prompts come before it; else it is the end of all prompts.
    """
    if spec.num_train is None:  # nothing has to be left to train on
        one = spec.model_copy(update={"num_eval": 1})
        prompts = [prompt for part in make_prompts(one, source) for prompt in part]
        if len(prompts) < spec.num_eval:
            raise DataError(
                f"prompts: {len(prompts)} distinct prompts were found, but num_eval="
                f"{spec.num_eval} are wanted; lower it or give more texts"
            )
        held_out = prompts[-spec.num_eval :]
    else:
        held_out = make_prompts(spec, source)[1]
    kept = [prompt for prompt in held_out if prompt.prompt_id not in entered]
    if not kept:
        raise DataError(
            f"prompts: all {len(held_out)} held-out prompts occur in the data of entry; "
            "give other ones, or no prompts section to evaluate with the test split"
        )
    return kept, {"dropped: prompt of the training data": len(held_out) - len(kept)}


def prompts_of_test_split(
    prompts: Mapping[str, str], spec: PairsSpec, max_prompts: int
) -> list[Prompt]:
    """The first `max_prompts` prompts (id -> text) whose pairs are kept out of training."""
    found = [Prompt(key, text) for key, text in prompts.items() if split_of(key, spec) == "test"]
    if not found:
        raise DataError(
            f"entry: none of its {len(prompts)} prompts is in the test split, so that there is "
            f"nothing to evaluate with; raise pairs.test_fraction={spec.test_fraction:g} or give a "
            "prompts section"
        )
    return found[:max_prompts]


# --- rows ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of the data, with what is needed to name a cell in a message."""

    place: str
    record: Mapping[str, object]
    columns: Mapping[str, str]
    is_csv: bool
    chat: bool
    """Whether the policy reads chat messages."""

    def prompt(self) -> str:
        """The prompt; messages are kept as JSON text."""
        talk = as_messages(self._value("prompt")) if self.chat else None
        if talk is not None:
            return json.dumps(talk)
        text = self.text("prompt")
        if not text.strip():
            raise self._error("prompt", "is empty; every row needs a prompt")
        return text

    def text(self, name: str) -> str:
        """A text, or with `chat` the assistant's answer at the end of a list of messages."""
        return self._text(name, "", self._value(name))

    def _text(self, name: str, index: str, value: object) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return self._answer(name, index, value)
        if not is_text(value):
            raise self._error(name, f"{index} is {short(value)}, not a text")
        return str(value)

    def _answer(self, name: str, index: str, value: object) -> str:
        """The last of the messages, the assistant's; those before it must be the prompt's."""
        talk = as_messages(value)
        if not self.chat or talk is None:
            raise self._error(
                name,
                f"{index} is a list of messages, not a text; set policy.chat, or apply the chat "
                "template to it first",
            )
        if talk[-1]["role"] != "assistant":
            raise self._error(
                name, f"{index} ends with a message of the {talk[-1]['role']}, not the assistant's"
            )
        prompt = self.prompt()
        asked = written_messages(prompt) or [{"role": "user", "content": prompt}]
        if talk[:-1] not in ([], asked):
            raise self._error(name, f"{index} has other messages before the last than its prompt")
        return talk[-1]["content"]

    def completions(self) -> list[str]:
        texts = self._list("completions")
        if len(texts) < 2:
            number = "one completion" if texts else "no completions"
            raise self._error("completions", f"has {number}; a pair needs at least two")
        return [self._text("completions", f"[{i}]", text) for i, text in enumerate(texts)]

    def scored_completions(self) -> list[tuple[str, float]]:
        texts, scores = self.completions(), self._list("scores")
        if len(texts) != len(scores):
            raise self._error(
                "scores",
                f"has {len(scores)} scores for {len(texts)} completions; give one for each",
            )
        numbers = [self._number("scores", f"[{i}]", score) for i, score in enumerate(scores)]
        return list(zip(texts, numbers, strict=True))

    def optional_number(self, name: str) -> float | None:
        value = self._value(name)
        if value is None or (self.is_csv and value == ""):
            return None
        if self.is_csv and isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)
        return self._number(name, "", value)

    def _list(self, name: str) -> list[object]:
        value = self._value(name)
        if isinstance(value, str):  # a CSV cell
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise self._error(name, f"is {short(value)}, not a list (in JSON)") from None
        if not isinstance(value, list):
            raise self._error(name, f"is {short(value)}, not a list")
        return value

    def _number(self, name: str, index: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._error(name, f"{index} is {short(value)}, not a number")
        if abs(value) > sys.float_info.max or math.isnan(value):  # whole numbers can be larger
            raise self._error(name, f"{index} is {short(value)}; a score is a finite number")
        return float(value)

    def _value(self, name: str) -> object:
        return self.record.get(self.columns[name])

    def _error(self, name: str, what: str) -> DataError:
        space = "" if what.startswith("[") else " "
        return DataError(f"{self.place}: column {self.columns[name]!r}{space}{what.strip()}")


def _source(entry: EntrySpec) -> FileText | DatasetText:
    """The data as the readers of corpus.py take it."""
    if entry.dataset is None:
        assert entry.path is not None, "the spec has one of both"
        return FileText(type="file", path=entry.path)
    return DatasetText(
        type="dataset",
        dataset=entry.dataset,
        config=entry.config,
        revision=entry.revision,
        split=entry.split,
    )


def _rows(entry: EntrySpec, chat: bool) -> Iterator[_Row]:
    """The rows, each with the columns that it must have."""
    columns = entry.column_names
    mapped = [name for name in OPTIONAL[entry.stage] if name in entry.columns]
    needed = [*REQUIRED[entry.stage], *mapped]
    source, records = load_records(
        _source(entry), {columns[name] for name in needed}, set(columns.values())
    )
    is_csv, number = source.lower().endswith(".csv"), 0
    for number, record in records:
        place = f"{source}, row {number}"
        for name in needed:
            if columns[name] not in record:
                raise DataError(
                    f"{place}: there is no column {columns[name]!r}; the columns are "
                    f"{', '.join(map(str, record)) or 'none'}. Map it with "
                    f"entry.columns={{{name}: ...}}"
                )
        yield _Row(place, record, columns, is_csv, chat)
    if not number:
        raise DataError(f"{source}: there are no rows; an entry needs at least one")


def _distinct(rows: Iterable[tuple[str, _Item]]) -> tuple[dict[str, _Item], int]:
    """The first item of every prompt, and how many rows repeated one."""
    distinct: dict[str, _Item] = {}
    repeated = 0
    for prompt, item in rows:
        repeated += prompt in distinct
        distinct.setdefault(prompt, item)
    return distinct, repeated


def _repeated(count: int) -> Notes:
    return {"dropped: repeated prompt": count}
