"""A YAML file or a shipped name, and dotted KEY=VALUE overrides, in; a resolved SweepSpec out.

All mistakes are SpecErrors that name the place, the value and the remedy.
"""

import difflib
import re
import types
import typing
from collections.abc import Hashable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from prefsweep.sweeps.errors import SpecError
from prefsweep.sweeps.spec import SweepSpec


class _Loader(yaml.SafeLoader):
    """YAML's safe loader that refuses duplicate keys and reads 1e-4 as a number (YAML 1.2)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key: Any = self.construct_object(key_node, deep=True)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise SpecError(f"line {line}: key {key!r} is not a name; quote it or remove it")
            if key in seen:
                raise SpecError(
                    f"line {line}: key {key!r} was already given in line {seen[key]}; keep one"
                )
            seen[key] = line
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def shipped_names() -> list[str]:
    """Names of the sweeps that come with the package."""
    folder = resources.files("prefsweep.sweeps")
    return sorted(
        item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")
    )


def load_spec(source: str, overrides: Sequence[str] = ()) -> SweepSpec:
    """The resolved spec of `source`, a YAML file or a shipped name, with `KEY=VALUE` overrides applied.

    Raises SpecError.
    """
    text, where = _read(source)
    data = _parse(text, where)
    if not isinstance(data, dict):
        raise SpecError(f"{where}: a sweep is a mapping of sections, not {_kind(data)}")
    for override in overrides:
        _apply(typing.cast("dict[str, Any]", data), override)
    return validate_spec(data, where)


def validate_spec(data: Any, where: str) -> SweepSpec:
    """`data` (from YAML or JSON) as a SweepSpec; `where` names its origin in messages. Raises SpecError."""
    try:
        return SweepSpec.model_validate(data)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in _messages(error))
        raise SpecError(f"{where} is not a valid sweep:\n{lines}") from None


def _read(source: str) -> tuple[str, str]:
    path = Path(source)
    if source in shipped_names() and not path.is_file():
        item = resources.files("prefsweep.sweeps") / f"{source}.yaml"
        return item.read_text(encoding="utf-8"), f"shipped sweep {source!r}"
    if not path.is_file():
        near = difflib.get_close_matches(source, shipped_names(), 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SpecError(
            f"{source}: no such file and no shipped sweep of that name; {hint}shipped are {', '.join(shipped_names())}"
        )
    try:
        return path.read_text(encoding="utf-8"), source
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{source} cannot be read as UTF-8 text: {error}") from None


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a subclass of SafeLoader
    except SpecError as error:
        raise SpecError(f"{where}, {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None


def _apply(data: dict[str, Any], override: str) -> None:
    """Set the dotted key of `KEY=VALUE` in `data`; numbers index lists; the value is read as YAML."""
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise SpecError(f"override {override!r} is not of the form section.key=value")
    parts = key.strip().split(".")
    target: Any = data
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(target, list):
            items = typing.cast("list[Any]", target)
            if not part.isdecimal() or int(part) >= len(items):
                raise SpecError(
                    f"override {override!r}: {'.'.join(parts[:depth])} has entries 0 to {len(items) - 1}, not {part!r}"
                )
            if last:
                items[int(part)] = _parse(value, f"override {override!r}")
            else:
                target = items[int(part)]
        elif isinstance(target, dict):
            mapping = typing.cast("dict[str, Any]", target)
            if last:
                mapping[part] = _parse(value, f"override {override!r}")
            else:
                if mapping.get(part) is None:
                    mapping[part] = {}
                target = mapping[part]
        else:
            raise SpecError(
                f"override {override!r}: {'.'.join(parts[:depth])} is {target!r}, which has no keys"
            )


def _messages(error: ValidationError) -> Iterator[str]:
    """One line per mistake: dotted name, what is wrong, the value, the remedy."""
    for item in error.errors(include_url=False):
        location = [part for part in item["loc"] if part not in _UNION_TAGS]
        name = ".".join(str(part) for part in location) or "the sweep"
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(location[-1]), _known_keys(item["loc"][:-1]), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            known = "" if near else f"; known are {', '.join(_known_keys(item['loc'][:-1]))}"
            yield f"{name}: unknown key{hint}{known}"
        elif item["type"] == "missing":
            yield f"{name}: required, but not given"
        elif item["type"] == "value_error":
            yield f"{name}: {item['msg'].removeprefix('Value error, ')}"
        else:
            yield f"{name}: {item['msg'][:1].lower() + item['msg'][1:]}, got {_short(item['input'])}"


_UNION_TAGS = frozenset(
    {
        "builtin",
        "file",
        "dataset",
        "classifier",
        "vader",
        "callable",
        "FirstWords",
        "FirstTokens",
        "constrained-int",
    }
)


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Field names of the model at `location`; union tags in it choose the member."""
    model: Any = SweepSpec
    for part in location:
        if isinstance(part, int):
            continue
        members = [m for m in _models(model) if part in m.model_fields]
        if members:
            model = members[0].model_fields[part].annotation
        else:
            model = next(
                (m for m in _models(model) if _tag(m) == part or m.__name__ == part), model
            )
    return sorted({key for m in _models(model) for key in m.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models inside a (possibly nested) annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, tuple, typing.Annotated):
        return [m for argument in typing.get_args(annotation) for m in _models(argument)]
    return []


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("type")
    return typing.get_args(field.annotation)[0] if field is not None else None


def _kind(value: Any) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
