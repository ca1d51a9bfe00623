"""Inspects the user's data for `init`: the stage that it can replace, and its sizes.

The readers of a run (rows.py, entry.py) are tried on the first rows, for the stage that saves the
most work first. The reader that fits then reads all rows.
"""

import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from prefsweep.sweeps.entry import OPTIONAL, REQUIRED, EntrySpec, EntryStage
from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.records import Prompt, prompt_id
from prefsweep.sweeps.spec import DatasetText, FileText, PairsSpec
from prefsweep.sweeps.validation_messages import listed
from prefsweep.workers.chat import written_messages
from prefsweep.workers.corpus import load_records, load_texts
from prefsweep.workers.entry import (
    read_completions,
    read_pairs,
    read_prompts,
    read_scored_completions,
)
from prefsweep.workers.files import Record, file_kind, first_line
from prefsweep.workers.formats import alpaca_prompt, near_column
from prefsweep.workers.locations import BUILTIN, PACKAGE, ModelSource, local_path
from prefsweep.workers.pairs import split_of
from prefsweep.workers.rows import SYSTEM, Row
from prefsweep.workers.sizes import model_folder

SAMPLE_ROWS = 200
"""Number of rows on which readers are tried."""
STAGES: Sequence[EntryStage] = ("pairs", "scored_completions", "completions", "prompts")
TEST_FRACTIONS = (0.2, 0.3, 0.5)
"""Shares of prompts to hold out; the first one that leaves prompts in both splits is used."""
_QUANTILE = 0.95
_ANSWERS = re.compile(r"(?i)instruct|[-_]chat|[-_]it$")
"""Pattern in the names of chat models on the hub."""


@dataclass(frozen=True)
class Found:
    """The result of an inspection."""

    stage: EntryStage
    source: Mapping[str, str]
    """Fields that name it: path, or dataset, config and split."""
    columns: Mapping[str, str]
    """prefsweep's column names -> the data's, where they differ."""
    prompt_column: str | None
    """The column with the prompt; None if a `prompts` section cannot read it."""
    chat: bool
    """Whether it has chat messages, which only a policy with a chat template can read."""
    num_rows: int
    """Number of prompts, completions or pairs."""
    num_prompts: int
    prompt_chars: int
    """95% quantile of the lengths of prompts, characters."""
    answer_chars: int
    """95% quantile of the lengths of completions, characters; 0 without completions."""
    with_scores: int
    """Number of completions or pairs that have scores."""
    test_fraction: float
    """Share of the prompts to hold out, such that both splits have prompts."""
    said: tuple[str, ...]
    """Warnings of the readers."""


def inspect(
    source: Mapping[str, str], columns: Mapping[str, str], *, chat: bool | None = None
) -> Found:
    """Inspect data. `source` has the fields of `entry` that name it; `columns` maps prefsweep's
    column names to the data's.

    With `chat`, rows are read for a chat policy; if False, for a policy that reads plain text; if
    None, whichever fits. Raises DataError if no reader fits.
    """
    if "path" in source and file_kind(local_path(source["path"])) == ".txt":
        return _prompts(source, "text", {}, chat=bool(chat))
    text = _text_source(source, "text")
    _, records = load_records(text, lambda names: list(names))
    rows = list(itertools.islice(records, SAMPLE_ROWS))
    if not rows:
        raise DataError(f"{_named(source)}: there are no rows")
    names = list(dict.fromkeys(str(name) for _, record in rows for name in record))
    why: dict[str, str] = {}
    for stage in STAGES:
        for is_chat in (False, True) if chat is None else (chat,):
            for mapped in _mappings(stage, names, columns):
                try:
                    _try(stage, rows, mapped, is_chat)
                except (DataError, ValidationError) as error:
                    why[stage] = first_line(error)
                    continue
                return _read(source, stage, mapped, rows, is_chat)
        own = [ours for ours in REQUIRED[stage] if ours != "prompt"]
        if own and all(ours in names for ours in own):  # it has the columns of this stage only
            raise DataError(f"{_named(source)}, {why[stage]}")
    raise DataError(
        f"{_named(source)}: its columns are {listed(names)}, and no reader takes them. As pairs: "
        f"{why['pairs']}. As prompts: {why['prompts']}. Name the columns, as in "
        "--column prompt=question --column chosen=better"
    )


def has_chat_template(policy: str) -> bool | None:
    """Whether a policy's tokenizer has a chat template; None if unknown from its files and name."""
    if policy.startswith(BUILTIN):
        return False
    folder = None if policy.startswith(PACKAGE) else model_folder(ModelSource(policy))
    if folder is None:
        return True if _ANSWERS.search(policy) else None
    if (folder / "chat_template.jinja").exists():
        return True
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        return bool(settings.get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return None


def _mappings(
    stage: EntryStage, names: Sequence[str], given: Mapping[str, str]
) -> Iterator[dict[str, str]]:
    """Column mappings to try, beginning with those that read the most columns."""
    known = (*REQUIRED[stage], *OPTIONAL[stage])
    own = {ours: column for ours, column in given.items() if ours in known}
    near = {
        ours: column
        for ours in known
        if ours not in names and ours not in own and (column := near_column(ours, names))
    }
    if near.get("prompt") in (
        "instruction",
        "conversations",
    ):  # read without a mapping
        del near["prompt"]
    needed = {ours: column for ours, column in near.items() if ours in REQUIRED[stage]}
    in_answers = {ours: column for ours, column in needed.items() if ours != "prompt"}
    seen: list[dict[str, str]] = []
    for more in ({o: c for o, c in near.items() if o in OPTIONAL[stage]}, {}):
        for needed_here in (in_answers, needed):
            mapped = {**needed_here, **more, **own}
            if mapped not in seen:
                seen.append(mapped)
                yield mapped


def _try(
    stage: EntryStage, rows: Sequence[tuple[int, Record]], mapped: dict[str, str], chat: bool
) -> None:
    """Raises DataError if a row cannot be read, ValidationError if the mapping is invalid."""
    columns = EntrySpec(stage=stage, path="-", columns=mapped).column_names
    optional = [name for name in OPTIONAL[stage] if name in mapped]
    counts = Counter[str]()
    for number, record in rows:
        row = Row(f"row {number}", record, columns, frozenset(mapped), chat)
        row.require([*REQUIRED[stage], *optional])
        match stage:
            case "pairs":
                row.pair()
                for name in OPTIONAL[stage]:
                    row.optional_number(name)
            case "scored_completions":
                counts[prompt_id(row.prompt())] += len(row.scored_completions())
            case "completions":
                counts[prompt_id(row.prompt())] += len(row.completions())
            case _:
                row.prompt()
    if counts and max(counts.values()) < 2:
        raise DataError("no prompt has two completions")


def _read(
    source: Mapping[str, str],
    stage: EntryStage,
    mapped: dict[str, str],
    rows: Sequence[tuple[int, Record]],
    chat: bool,
) -> Found:
    """Read all data as a run does. Raises DataError for a row that cannot be read."""
    column = _prompt_column(mapped, rows, chat)
    if stage == "prompts" and column is not None:
        return _prompts(source, column, mapped, chat=chat)
    entry = EntrySpec(stage=stage, columns=mapped, **source)  # pyright: ignore[reportArgumentType]
    with _warnings() as said:
        if stage == "pairs":
            pairs = read_pairs(entry, PairsSpec(test_fraction=0), chat=chat)[0]
            prompts = {pair.prompt_id: pair.prompt for pair in pairs}
            answers = [max(len(pair.chosen), len(pair.rejected)) for pair in pairs]
            scored = sum(None not in (p.chosen_score, p.rejected_score) for p in pairs)
        elif stage == "prompts":
            prompts = {each.prompt_id: each.text for each in read_prompts(entry, chat=chat)[0]}
            answers, scored = [], 0
        else:
            has_scores = stage == "scored_completions"
            read: Any = read_scored_completions if has_scores else read_completions
            items = read(entry, chat=chat)[0]
            prompts = {item.prompt_id: item.prompt for item in items}
            answers = [len(item.text) for item in items]
            scored = len(items) if has_scores else 0
    return Found(
        stage=stage,
        source=source,
        columns=mapped,
        prompt_column=column,
        chat=chat,
        num_rows=len(answers) or len(prompts),
        num_prompts=len(prompts),
        prompt_chars=_long([len(text) for text in prompts.values()]),
        answer_chars=_long(answers),
        with_scores=scored,
        test_fraction=_test_fraction(source, list(prompts)),
        said=tuple(said),
    )


def _prompts(
    source: Mapping[str, str], column: str, mapped: dict[str, str], *, chat: bool
) -> Found:
    """Inspect prompts for a `prompts` section: the texts of one column, or lines of a file."""
    with _warnings() as said:
        texts = [row.text for row in load_texts(_text_source(source, column), messages=True)]
    prompts = [Prompt(prompt_id(text), text) for text in texts if text.strip()]
    num = len({prompt.prompt_id for prompt in prompts})
    if num < 2:
        raise DataError(
            f"{_named(source)}: {num} distinct prompts; a sweep needs one to train on and one to "
            "evaluate with, and is worth reading from about a hundred on"
        )
    return Found(
        stage="prompts",
        source=source,
        columns=mapped,
        prompt_column=column,
        chat=chat or any(written_messages(text) is not None for text in texts),
        num_rows=len(prompts),
        num_prompts=num,
        prompt_chars=_long([len(prompt.text) for prompt in prompts]),
        answer_chars=0,
        with_scores=0,
        test_fraction=TEST_FRACTIONS[0],
        said=tuple(said),
    )


def _prompt_column(
    mapped: Mapping[str, str], rows: Sequence[tuple[int, Record]], chat: bool
) -> str | None:
    """The column with the prompt; None if no single column has it."""
    names = rows[0][1].keys()
    if chat and any(name in names for name in SYSTEM):
        return None
    if "prompt" in mapped:
        return mapped["prompt"]
    if "prompt" in names:
        return "prompt"
    if "conversations" in names:
        return "conversations"
    is_alone = all(alpaca_prompt(record) == record.get("instruction") for _, record in rows)
    return "instruction" if is_alone and "instruction" in names else None


def _test_fraction(source: Mapping[str, str], ids: Sequence[str]) -> float:
    for fraction in TEST_FRACTIONS:
        spec = PairsSpec(test_fraction=fraction)
        if 0 < sum(split_of(key, spec) == "test" for key in ids) < len(ids):
            return fraction
    raise DataError(
        f"{_named(source)}: {len(ids)} distinct prompts, which cannot be split into some to train "
        "on and some to evaluate with; give more"
    )


def _text_source(source: Mapping[str, str], column: str) -> FileText | DatasetText:
    if "path" in source:
        return FileText(type="file", path=source["path"], column=column)
    return DatasetText(type="dataset", column=column, **source)  # pyright: ignore[reportArgumentType]


def _named(source: Mapping[str, str]) -> str:
    return source.get("path") or f"dataset {source['dataset']}"


def _long(lengths: Sequence[int]) -> int:
    """The 95% quantile; 0 without values."""
    ordered = sorted(lengths)
    return ordered[min(len(ordered) - 1, int(_QUANTILE * len(ordered)))] if ordered else 0


class _Keep(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect the warnings of readers inside the block instead of printing them."""
    logger, keep = logging.getLogger("prefsweep.workers"), _Keep()
    was = logger.propagate
    logger.addHandler(keep)
    logger.propagate = False
    try:
        yield keep.said
    finally:
        logger.removeHandler(keep)
        logger.propagate = was
