"""Reads the user's data (an `entry` section) as records of the stage that it replaces.

Every row is checked. Rows that cannot be used are refused with their number; rows that are left out
are counted. Nothing is ranked or paired. Completions count as finished, so an end-of-text token may
follow them. `rows.py` reads the cells of a row.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from prefsweep.sweeps.entry import OPTIONAL, REQUIRED, EntrySpec
from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.records import (
    Completion,
    PreferencePair,
    Prompt,
    ScoredCompletion,
    prompt_id,
)
from prefsweep.sweeps.spec import DatasetText, FileText, PairsSpec, Prompts, UnconditionalPrompts
from prefsweep.sweeps.validation_messages import listed
from prefsweep.workers.corpus import chosen, load_records, source_identity
from prefsweep.workers.formats import near_column
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.pairs import split_of
from prefsweep.workers.prompts import (
    distinct_prompts,
    evaluation_order,
    make_prompts,
    prompt_texts,
)
from prefsweep.workers.rows import ALSO_READ, Row

log = logging.getLogger(__name__)

Notes = dict[str, float]
"""Counts for the report."""
FINISH_REASON = "eos"
_Item = TypeVar("_Item")


def entry_identity(entry: EntrySpec) -> str:
    """The identity of the data's content: SHA-256, or hub ID and commit. Raises DataError."""
    return source_identity(_source(entry))


def read_prompts(entry: EntrySpec, *, chat: bool = False) -> tuple[list[Prompt], Notes]:
    """The distinct prompts, in order. With `chat`, prompts and completions may be chat messages.

    Raises DataError, like all readers in this module.
    """
    prompts: dict[str, Prompt] = {}
    repeated = 0
    for row in _rows(entry, chat):
        text = row.prompt()
        key = prompt_id(text)
        repeated += key in prompts
        prompts.setdefault(key, Prompt(key, text))
    return list(prompts.values()), {"dropped: repeated prompt": repeated}


def read_completions(entry: EntrySpec, *, chat: bool = False) -> tuple[list[Completion], Notes]:
    """All completions of every prompt, those of its first row first."""
    groups, notes = _gathered(
        (row, row.prompt(), row.completions(), row.is_single()) for row in _rows(entry, chat)
    )
    completions = [
        Completion(key, index, prompt, text, FINISH_REASON)
        for key, group in groups.items()
        for index, (prompt, text) in enumerate(group.items)
    ]
    return completions, notes


def read_scored_completions(
    entry: EntrySpec, *, chat: bool = False
) -> tuple[list[ScoredCompletion], Notes]:
    """All completions of every prompt, those of its first row first, with their scores."""
    groups, notes = _gathered(
        (row, row.prompt(), row.scored_completions(), row.is_single()) for row in _rows(entry, chat)
    )
    completions = [
        ScoredCompletion(key, index, prompt, text, FINISH_REASON, score)
        for key, group in groups.items()
        for index, (prompt, (text, score)) in enumerate(group.items)
    ]
    return completions, notes


# --- completions of a prompt ---------------------------------------------------------------------


@dataclass
class _Group(Generic[_Item]):
    """The items of one prompt's rows."""

    row: Row
    is_single: bool
    """Whether its first row has one completion, as a text instead of a list."""
    items: list[tuple[str, _Item]] = field(default_factory=list[tuple[str, _Item]])
    """Each item with the prompt as written in its row."""
    rows: set[tuple[_Item, ...]] = field(default_factory=set[tuple[_Item, ...]])


def _gathered(
    rows: Iterable[tuple[Row, str, list[_Item], bool]],
) -> tuple[dict[str, _Group[_Item]], Notes]:
    """The items of every prompt (by ID), from all its rows. Repeated items count once.

    A prompt with only one completion is left out if the completion is a text, and raises DataError
    if it is a list of one.
    """
    groups: dict[str, _Group[_Item]] = {}
    repeated = 0
    for row, prompt, items, is_single in rows:
        group = groups.setdefault(prompt_id(prompt), _Group(row, is_single))
        if tuple(items) in group.rows:
            repeated += len(items)
        else:
            group.rows.add(tuple(items))
            group.items += [(prompt, item) for item in items]
    alone = [key for key, group in groups.items() if len(group.items) < 2]
    for key in alone:
        group = groups[key]
        if not group.is_single or len(alone) == len(groups):
            raise group.row.too_few(len(group.items))
    kept = {key: group for key, group in groups.items() if len(group.items) > 1}
    return kept, {
        "dropped: repeated completion": repeated,
        "dropped: only completion of its prompt": len(alone),
    }


# --- pairs ---------------------------------------------------------------------------------------

_Scores = tuple[float | None, float | None]


def read_pairs(
    entry: EntrySpec, spec: PairsSpec, *, chat: bool = False
) -> tuple[list[PreferencePair], Notes]:
    """The pairs, grouped by prompt; repeated pairs count once.

    A pair with both scores is only kept if the chosen score is higher by pairs.min_margin.
    """
    by_prompt: dict[str, dict[tuple[str, str], tuple[str, _Scores]]] = {}
    dropped = Counter[str](dict.fromkeys(_REASONS, 0))
    for row in _rows(entry, chat):
        pair = row.pair()
        if pair is None:
            dropped["answer of several turns"] += 1
            continue
        prompt, *answers = pair
        texts = answers[0], answers[1]
        scores = row.optional_number("chosen_score"), row.optional_number("rejected_score")
        pairs = by_prompt.setdefault(prompt_id(prompt), {})
        reason = "repeated pair" if texts in pairs else _reason(texts, scores, spec)
        if reason is None:
            pairs[texts] = prompt, scores  # the prompt as written in this row
        else:
            dropped[reason] += 1
    pairs = [
        PreferencePair(
            pair_id=f"{key}-{index}",
            prompt_id=key,
            split=split_of(key, spec),
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            chosen_score=scores[0],
            rejected_score=scores[1],
            chosen_finish_reason=FINISH_REASON,
            rejected_finish_reason=FINISH_REASON,
        )
        for key, texts in by_prompt.items()
        for index, ((chosen, rejected), (prompt, scores)) in enumerate(texts.items())
    ]
    return pairs, _pair_notes(pairs, dropped, spec)


_REASONS = (
    "same text",
    "repeated pair",
    "equal scores",
    "chosen_score below rejected_score",
    "below min_margin",
    "answer of several turns",
)


def _reason(texts: tuple[str, str], scores: _Scores, spec: PairsSpec) -> str | None:
    """Why a pair is left out; None if it is kept. Pairs without both scores are kept."""
    if texts[0] == texts[1]:
        return "same text"
    chosen, rejected = scores
    if chosen is None or rejected is None:
        return None
    if chosen == rejected:
        return "equal scores"
    if chosen < rejected:
        return "chosen_score below rejected_score"
    return "below min_margin" if chosen - rejected < spec.min_margin else None


def _pair_notes(pairs: list[PreferencePair], dropped: Counter[str], spec: PairsSpec) -> Notes:
    """Counts for the report. Raises DataError if no pair is left to train on."""
    reasons = {f"dropped: {reason}": float(count) for reason, count in dropped.items()}
    num_test = sum(pair.split == "test" for pair in pairs)
    if num_test == len(pairs):
        why = ", ".join(f"{name} {count:g}" for name, count in reasons.items() if count)
        raise DataError(
            f"entry: there is no pair to train on (in the test split {num_test}"
            f"{', ' if why else ''}{why}); use more prompts, or lower pairs.test_fraction"
            f"{' or pairs.min_margin' if spec.min_margin else ''}"
        )
    known = sum(None not in (pair.chosen_score, pair.rejected_score) for pair in pairs)
    if spec.min_margin and not known:
        raise DataError(
            f"entry: pairs.min_margin={spec.min_margin:g} needs the scores of a pair, and no pair "
            "has both; map them with entry.columns={chosen_score: ..., rejected_score: ...}, or "
            "remove pairs.min_margin"
        )
    if spec.min_margin and known < len(pairs):
        log.warning(
            "entry: %d pairs without both scores are kept; pairs.min_margin does not apply to them",
            len(pairs) - known,
        )
    _report_oddities(pairs)
    return {
        "prompts with pairs": len({pair.prompt_id for pair in pairs}),
        "pairs with both scores": known,
        **reasons,
        "test pairs": num_test,
    }


def _report_oddities(pairs: list[PreferencePair]) -> None:
    """Log what is read unchanged but may be a mistake."""
    doubled = sum(
        bool(p.prompt) and p.chosen.startswith(p.prompt) and p.rejected.startswith(p.prompt)
        for p in pairs
    )
    if doubled:
        log.warning("entry: %d pairs repeat their prompt at the start of both answers", doubled)
    both = {(pair.prompt_id, pair.chosen, pair.rejected) for pair in pairs}
    reversed_too = sum((key, bad, good) in both for key, good, bad in both)
    if reversed_too:
        log.warning("entry: %d pairs also occur with chosen and rejected swapped", reversed_too)


# --- prompts to evaluate with --------------------------------------------------------------------


def held_out_prompts(
    spec: Prompts, source: ModelSource, entered: Collection[str]
) -> tuple[list[Prompt], Notes]:
    """The held-out prompts of a prompts section, without prompts that occur in the data.

    It is that of a sweep which trains on its prompts; without num_train, no prompt has to be left
    to train on.
    """
    if not isinstance(spec, UnconditionalPrompts) and spec.num_train is None:
        prompts = distinct_prompts(prompt_texts(spec, source), spec)
        if len(prompts) < spec.num_eval:
            raise DataError(
                f"prompts: {len(prompts)} distinct prompts were found, but num_eval="
                f"{spec.num_eval} are needed; lower it or use more texts"
            )
        held_out = evaluation_order(prompts, spec)[: spec.num_eval]
    else:
        held_out = make_prompts(spec, source)[1]
    kept = [prompt for prompt in held_out if prompt.prompt_id not in entered]
    if not kept:
        raise DataError(
            f"prompts: all {len(held_out)} held-out prompts occur in the data of entry; "
            "use other prompts, or remove the prompts section to evaluate with the test split"
        )
    return kept, {"dropped: prompt of the training data": len(held_out) - len(kept)}


def prompts_of_test_split(
    prompts: Mapping[str, str], spec: PairsSpec, max_prompts: int
) -> list[Prompt]:
    """The first `max_prompts` prompts (ID -> text) of the test split."""
    found = [Prompt(key, text) for key, text in prompts.items() if split_of(key, spec) == "test"]
    if not found:
        raise DataError(
            f"entry: none of its {len(prompts)} prompts is in the test split, so there is nothing "
            f"to evaluate with; raise pairs.test_fraction={spec.test_fraction:g} or add a prompts "
            "section"
        )
    return found[:max_prompts]


# --- rows ----------------------------------------------------------------------------------------


def _source(entry: EntrySpec) -> FileText | DatasetText:
    """The data as a source for the readers in corpus.py."""
    if entry.dataset is None:
        assert entry.path is not None, "the spec has either path or dataset"
        return FileText(type="file", path=entry.path)
    return DatasetText(
        type="dataset",
        dataset=entry.dataset,
        config=entry.config,
        revision=entry.revision,
        split=entry.split,
    )


def _rows(entry: EntrySpec, chat: bool) -> Iterator[Row]:
    """The rows. Raises if a required column is missing; logs columns that are not read."""
    columns, there, used = entry.column_names, dict[str, None](), set[str]()
    mapped = [name for name in OPTIONAL[entry.stage] if name in entry.columns]
    needed = [columns[name] for name in (*REQUIRED[entry.stage], *mapped)]

    def choose(names: Sequence[str]) -> list[str]:
        there.update(dict.fromkeys(names))
        return chosen(names, needed, [*columns.values(), *ALSO_READ])

    source, records = load_records(_source(entry), choose)
    number = 0
    for number, record in records:
        row = Row(f"{source}, row {number}", record, columns, frozenset(entry.columns), chat, used)
        row.require([*REQUIRED[entry.stage], *mapped])
        yield row
        if not record.keys() <= there.keys():
            there.update(dict.fromkeys(map(str, record)))
    if not number:
        raise DataError(f"{source}: there are no rows; an entry needs at least one")
    _report_unread(entry, source, [name for name in there if name not in used])


def _report_unread(entry: EntrySpec, source: str, unread: list[str]) -> None:
    """Log the columns that are not read, and how to read those with a known other name."""
    if not unread:
        return
    optional = [name for name in OPTIONAL[entry.stage] if name not in entry.columns]
    near = {name: near_column(name, unread) for name in optional}
    maps = ", ".join(f"{name}: {column}" for name, column in near.items() if column)
    remedy = f"; entry.columns={{{maps}}} would read them" if maps else ""
    log.warning("%s: columns that are not read: %s%s", source, listed(unread), remedy)
