"""Turns pydantic's ValidationError into one line per mistake: dotted name, problem, remedy.

pydantic reports each alternative of a union separately and includes its name in the location. The
lines made here contain only the keys that the user wrote, and each mistake once.
"""

import difflib
import reprlib
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from prefsweep.sweeps.spec import SweepSpec

MAX_LINES = 20
"""Number of mistakes that are shown; the others are counted."""
MAX_LISTED = 20
"""Number of names that a list in a message shows; the others are counted."""

Location = tuple[int | str, ...]

_printer = reprlib.Repr()
_printer.maxlevel = 3
_printer.maxstring = _printer.maxother = _printer.maxlong = 80


def short(value: Any) -> str:
    """A value for a message, at most 80 characters; it may be huge or contain itself."""
    text = _printer.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def listed(names: Iterable[object]) -> str:
    """A list for a message: the first MAX_LISTED names, each at most 80 characters, and how many
    more there are."""
    texts = [text if len(text) <= 80 else f"{text[:77]}..." for text in map(str, names)]
    more = f" and {len(texts) - MAX_LISTED} more" if len(texts) > MAX_LISTED else ""
    return (", ".join(texts[:MAX_LISTED]) or "none") + more


def mistakes(error: ValidationError) -> list[str]:
    """One line per mistake, MAX_LINES at most."""
    places = [
        (place, item)
        for item in cast("list[dict[str, Any]]", error.errors(include_url=False))
        for place in [_place(item["loc"], item["type"])]
    ]
    names = {place.name for place, _ in places}
    by_name: dict[str, list[tuple[_Place, dict[str, Any]]]] = {}
    for place, item in places:
        # Assume that the user meant the alternative that matched deepest, and drop the others.
        deeper = any(name.startswith(f"{place.name}.") for name in names)
        if not (place.is_alternative and deeper):
            by_name.setdefault(place.name, []).append((place, item))
    lines = [_printable(_line(group)) for group in by_name.values()]
    if len(lines) > MAX_LINES:
        lines[MAX_LINES:] = [f"... and {len(lines) - MAX_LINES} more"]
    return lines


@dataclass(frozen=True)
class _Place:
    """The place of a mistake, by the user's keys, and the sections that are valid there."""

    path: tuple[str, ...]
    models: list[type[BaseModel]]
    """The sections that are valid there."""
    siblings: list[type[BaseModel]]
    """All members of the tagged union from which `models` was chosen."""
    is_alternative: bool
    """Whether pydantic tried several alternatives at this place."""

    @property
    def name(self) -> str:
        return ".".join(self.path) or "the sweep"


def _place(location: Location, kind: str) -> _Place:
    """Follow `location` through the spec's annotations, and drop the names of union members."""
    annotation: Any = SweepSpec
    path: list[str] = []
    siblings: list[type[BaseModel]] = []
    is_alternative = False
    on_the_way = location[:-1] if kind == "extra_forbidden" else location
    for part in on_the_way:
        models = _models(annotation)
        chosen = [m for m in models if part in (_tag(m), m.__name__)]
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        if chosen:
            annotation, siblings = chosen[0], models
        elif isinstance(part, int):
            path.append(str(part))
        elif fields:
            annotation, siblings = fields[0].annotation, []
            path.append(part)
        elif typing.get_origin(annotation) is dict and not part.startswith("["):
            annotation = typing.get_args(annotation)[1]
            path.append(part)
        else:
            is_alternative = True
    if kind == "extra_forbidden":
        path.append(str(location[-1]))
    return _Place(tuple(path), _models(annotation), siblings, is_alternative)


def _line(group: list[tuple[_Place, dict[str, Any]]]) -> str:
    place, item = group[0]
    name, kind, value = place.name, item["type"], short(item["input"])
    context: dict[str, Any] = item.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{name}: unknown key; {_remedy(place)}"
    if kind == "missing":
        return f"{name}: required, but not given"
    if kind == "value_error":
        return f"{name}: {item['msg'].removeprefix('Value error, ')}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = [str(_tag(model)) for model in place.models]
        if kind == "union_tag_not_found":
            return f"{name}.type: required, but not given; use one of {', '.join(tags)}"
        near = difflib.get_close_matches(str(context["tag"]), tags, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{name}.type: {short(context['tag'])} is not one of {', '.join(tags)}{hint}"
    if kind in ("model_type", "model_attributes_type"):
        return f"{name}: should be a mapping of {', '.join(_keys(place.models))}, got {value}"
    first, *others = dict.fromkeys(each["msg"].removeprefix("Input ") for _, each in group)
    wants = [first[:1].lower() + first[1:], *(want.removeprefix("should be ") for want in others)]
    return f"{name}: {', or '.join(wants)}, got {value}"


def _remedy(place: _Place) -> str:
    """The remedy for an unknown key: a similar key here or in another section, or all keys."""
    *section, key = place.path
    known = _keys(place.models)
    owners = [str(_tag(model)) for model in place.siblings if key in model.model_fields]
    if owners:
        return f"it belongs to type: {' or '.join(owners)}; known are {', '.join(known)}"
    near = difflib.get_close_matches(key, known, 1)
    far = [path for path in _all_paths() if _likeness(key, path[-1]) >= 0.75]
    best = max((_likeness(key, path[-1]) for path in far), default=0.0)
    if near and _likeness(key, near[0]) >= best - 0.1:
        return f"did you mean {'.'.join([*section, near[0]])}?"
    if far:
        found = [path for path in far if _likeness(key, path[-1]) >= best - 0.15]
        found.sort(key=lambda path: len([part for part in path if not part.isdecimal()]))
        return f"did you mean {' or '.join('.'.join(path) for path in found[:3])}?"
    return f"known are {', '.join(known)}"


def _likeness(one: str, other: str) -> float:
    """Similarity, 0 to 1, as in `difflib.get_close_matches`."""
    return difflib.SequenceMatcher(None, other, one[:80]).ratio()


def _all_paths() -> list[tuple[str, ...]]:
    """The path of every key of a spec; list entries have the index 0."""

    def below(models: Sequence[type[BaseModel]], at: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for model in models:
            for name, field in model.model_fields.items():
                is_list = typing.get_origin(field.annotation) is tuple
                yield (*at, name)
                yield from below(
                    _models(field.annotation), (*at, name, "0") if is_list else (*at, name)
                )

    return list(dict.fromkeys(below([SweepSpec], ())))


def _keys(models: Sequence[type[BaseModel]]) -> list[str]:
    return sorted({key for model in models for key in model.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models inside a (possibly nested) annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple, typing.Annotated):
        return [m for argument in typing.get_args(annotation) for m in _models(argument)]
    return []


def _tag(model: type[BaseModel]) -> str | None:
    """The value of `type` that selects this model."""
    field = model.model_fields.get("type")
    return typing.get_args(field.annotation)[0] if field is not None else None


def _printable(text: str) -> str:
    """The text with lone surrogates escaped, because UTF-8 cannot encode them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
