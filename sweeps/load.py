"""Loads a spec: from a YAML file or a shipped name, with dotted KEY=VALUE overrides.

Every mistake is a SpecError with the place, the value and the remedy.
"""

import copy
import difflib
import logging
import os.path
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from prefsweep.sweeps.errors import SpecError
from prefsweep.sweeps.functions import with_found_function
from prefsweep.sweeps.inert import require_dropout_that_is_on, without_effect
from prefsweep.sweeps.spec import SweepSpec
from prefsweep.sweeps.validation_messages import mistakes, short

log = logging.getLogger(__name__)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values (1e-4 is a number, `no` is text); tags and duplicate keys fail."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = cast("yaml.Event", self.peek_event())  # pyright: ignore[reportUnknownMemberType]
        tag: str | None = getattr(event, "tag", None)
        if tag not in (None, "!"):
            line = event.start_mark.line + 1
            raise SpecError(f"line {line}: tag {tag!r}: only plain values are allowed; remove it")
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Checked before mappings are constructed, because merge keys (<<) change the nodes.
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key_node, _ in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if not (isinstance(key_node, yaml.ScalarNode) and key_node.tag.endswith(":str")):
                key = short(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "[...]"
                raise SpecError(f"line {line}: key {key} is not a name; quote it or remove it")
            key = cast("str", key_node.value)
            if key in lines:
                raise SpecError(
                    f"line {line}: key {short(key)} was already given in line {lines[key]}; "
                    "keep one"
                )
            lines[key] = line
        return node


# The first pattern that matches decides; a value that matches none is text. Integers beyond 64 bits
# are read as floats, which the spec refuses for integer fields.
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]{0,17})|0x[0-9a-fA-F]{1,15}", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first
    )


def shipped_names() -> list[str]:
    """Names of the sweeps shipped with the package."""
    folder = resources.files("prefsweep.sweeps")
    return sorted(
        item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")
    )


def load_spec(source: str, overrides: Sequence[str] = ()) -> SweepSpec:
    """Load the spec of `source`, a YAML file or a shipped name, with `KEY=VALUE` overrides.

    Raises SpecError.
    """
    return parse_spec(*_read(source), overrides)


def parse_spec(text: str, where: str, overrides: Sequence[str] = ()) -> SweepSpec:
    """The spec of a YAML text that is, or is to be, the file `where`. Raises SpecError."""
    data = _parse(text, where)
    if not isinstance(data, dict):
        raise SpecError(f"{where}: a sweep is a mapping of sections, not {_kind(data)}")
    for override in overrides:
        _apply(cast("dict[str, Any]", data), override)
    given = f" with {', '.join(short(override) for override in overrides)}" if overrides else ""
    spec = validate_spec(cast("Any", data), where + given)
    require_dropout_that_is_on(spec.training)
    for line in without_effect(spec):
        log.warning("%s: %s", where, line)
    return with_found_function(spec, Path(where).parent)


def validate_spec(data: Any, where: str) -> SweepSpec:
    """Validate `data` (from YAML or JSON) as a SweepSpec; messages name `where` as its origin.

    Raises SpecError.
    """
    try:
        return SweepSpec.model_validate(data)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in mistakes(error))
        raise SpecError(f"{where} is not a valid sweep:\n{lines}") from None


def _read(source: str) -> tuple[str, str]:
    """The text, and its name in messages. A file takes precedence over a shipped name."""
    if not os.path.exists(source):
        if source in shipped_names():
            item = resources.files("prefsweep.sweeps") / f"{source}.yaml"
            return item.read_text(encoding="utf-8"), f"shipped sweep {source!r}"
        near = difflib.get_close_matches(source, shipped_names(), 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SpecError(
            f"{short(source)}: no such file and no shipped sweep of that name; {hint}"
            f"shipped are {', '.join(shipped_names())}"
        )
    try:
        return Path(source).read_text(encoding="utf-8"), source
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{source} cannot be read as UTF-8 text: {error}") from None


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except SpecError as error:
        raise SpecError(f"{where}, {error}") from None
    except RecursionError:
        raise SpecError(f"{where} is nested too deeply, or contains itself") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None


def _apply(data: dict[str, Any], override: str) -> None:
    """Set the dotted key of `KEY=VALUE` in `data`; numbers index lists; the value is read as YAML.

    The parents of the value are copied first: a YAML alias may share them with other places.
    """
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    name = f"override {short(override)}"
    if not equals or not all(parts):
        raise SpecError(f"{name} does not have the form section.key=value")
    value = _parse(text, name)
    target: Any = data
    for depth, part in enumerate(parts):
        index = _index(target, part, f"{name}: {'.'.join(parts[:depth])}")
        if depth == len(parts) - 1:
            target[index] = value
        else:
            inner = target[index] if isinstance(index, int) else target.get(index)
            target[index] = {} if inner is None else copy.copy(inner)
            target = target[index]


def _index(target: Any, part: str, place: str) -> str | int:
    """`part` as an index of `target`, a mapping or a list; SpecError if it is neither."""
    if isinstance(target, dict):
        return part
    if not isinstance(target, list):
        raise SpecError(f"{place} is {short(target)}, which has no keys")
    indices = [str(i) for i in range(len(cast("list[Any]", target)))]
    if part not in indices:
        entries = f"entries 0 to {len(indices) - 1}" if indices else "no entries"
        raise SpecError(f"{place} has {entries}, not {part!r}")
    return int(part)


def _kind(value: Any) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"
