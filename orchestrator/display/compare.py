"""Renders the comparison of two sweeps: Markdown, tables for a terminal, or a JSON document."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prefsweep.orchestrator.results.compare import METRICS, Match, Side, SweepComparison
from prefsweep.orchestrator.state.sweep import UNTRAINED
from prefsweep.orchestrator.text import DASH, clean, inline, show, with_interval

MAX_FIELDS = 30
"""Differing fields of the spec that are listed; the rest are counted."""


def document(found: SweepComparison) -> dict[str, Any]:
    """The document that `compare --json` prints."""
    return asdict(found)


def markdown(found: SweepComparison) -> str:
    """The text that `compare --to FILE.md` writes."""
    lines = [f"# {inline(found.one)} and {inline(found.other)}", ""]
    lines += [f"- {inline(note)}" for note in (*found.notes, *_facts(found))]
    lines += ["", *_markdown_table(_head(found), [_row(match) for match in found.matches])]
    if found.spec:
        rows = [[key, *map(_value, both)] for key, both in _fields(found)]
        lines += ["", *_markdown_table(["field", found.one, found.other], rows)]
    return "\n".join([*lines, ""])


def render(found: SweepComparison) -> RenderableType:
    """The comparison as tables for a terminal."""
    rows = Table(*map(clean, _head(found)), box=None, pad_edge=False, header_style="dim")
    for match in found.matches:
        rows.add_row(*(Text(clean(cell)) for cell in _row(match)))
    fields = Table("field", found.one, found.other, box=None, pad_edge=False, header_style="dim")
    for key, both in _fields(found):
        fields.add_row(Text(clean(key)), *(Text(clean(_value(value))) for value in both))
    notes = [Text(clean(note), "yellow") for note in found.notes]
    facts = [Text(clean(fact)) for fact in _facts(found)]
    return Group(rows, Text(), *notes, *facts, *([Text(), fields] if found.spec else []))


def _head(found: SweepComparison) -> list[str]:
    rewards = [f"reward of {name}" for name in (found.one, found.other)]
    return ["grid point", *rewards, "difference", *(f"{metric}, both" for metric in METRICS)]


def _row(match: Match) -> list[str]:
    sides = (match.one, match.other)
    difference = with_interval(match.difference, match.difference_interval)
    metrics = [" / ".join(show(side.metrics.get(metric)) for side in sides) for metric in METRICS]
    names = dict.fromkeys(side.name for side in sides)
    name = match.name if len(names) == 1 else f"{match.name} ({' and '.join(names)})"
    same = " (the same trials)" if match.same_trials and match.name != UNTRAINED else ""
    return [f"{name}{same}", *map(_reward, sides), difference, *metrics]


def _reward(side: Side) -> str:
    seeds = f" ({side.num_seeds} seeds)" if side.num_seeds > 1 else ""
    return f"{with_interval(side.reward, side.reward_interval)}{seeds}"


def _facts(found: SweepComparison) -> list[str]:
    """Which stages are the same, and which grid points only one sweep has finished."""
    same = [name for name, is_same in found.stages.items() if is_same]
    differ = [name for name, is_same in found.stages.items() if not is_same]
    facts = [f"same stages: {', '.join(same) or 'none'}; different: {', '.join(differ) or 'none'}"]
    for name, names in ((found.one, found.only_one), (found.other, found.only_other)):
        if names:
            facts.append(f"only {name} has finished {', '.join(names)}")
    return facts


def _fields(found: SweepComparison) -> list[tuple[str, tuple[object, object]]]:
    shown = list(found.spec.items())[:MAX_FIELDS]
    left_out = len(found.spec) - len(shown)
    return shown if not left_out else [*shown, (f"and {left_out} more", (None, None))]


def _value(value: object) -> str:
    text = DASH if value is None else str(value)
    return inline(text if len(text) <= 60 else f"{text[:57]}...")


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(map(inline, line))} |" for line in lines]
