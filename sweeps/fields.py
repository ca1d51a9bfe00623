"""Reads the documentation of each field from the JSON Schema, for `explain` and the reference.

Dotted names here have no list indices: `grid.beta` means `grid.0.beta`, `grid.1.beta` and so on.
"""

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from prefsweep.sweeps.errors import UsageError
from prefsweep.sweeps.schema import Node, spec_schema

MAX_SHOWN = 12
"""Number of fields with the same name that are explained; the others are counted."""
REQUIRED = "required"


@dataclass(frozen=True)
class Field:
    """A field of a spec."""

    name: str
    """Dotted name."""
    of_type: str
    """The `type` that its section must have; "" if the section has no types."""
    values: str
    """Allowed values."""
    default: str
    """Default as in YAML; "required" if it has none, "" for a section."""
    meaning: str
    """What the field does, with its unit."""


@dataclass(frozen=True)
class FieldSection:
    """A section of a spec and its fields."""

    name: str
    of_type: str
    meaning: str
    fields: list[Field]


def sections() -> list[FieldSection]:
    """All sections of a spec, beginning with the sweep itself; each before those inside it."""
    schema = spec_schema()
    found: list[FieldSection] = []
    for section in _sections(schema, "", schema):
        if section not in found:  # a section may be in several types of another
            found.append(section)
    return found


def explained(name: str) -> list[Field]:
    """The fields with a dotted name, or the end of one. Raises UsageError if there is none."""
    wanted = ".".join(part for part in name.strip().split(".") if not part.isdecimal())
    fields = [field for section in sections() for field in section.fields]
    found = [field for field in fields if field.name == wanted]
    found = found or [field for field in fields if f".{field.name}".endswith(f".{wanted}")]
    if found:
        return found
    names = sorted({part for field in fields for part in (field.name, field.name.split(".")[-1])})
    near = difflib.get_close_matches(wanted, names, 3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`prefsweep explain` lists all"
    raise UsageError(f"a spec has no field {wanted[:80]!r}; {hint}")


def reference() -> str:
    """The fields reference, as Markdown."""
    lines = [
        "# Fields of a sweep",
        "",
        "Written by `make docs` from the documentation in the code; a test checks that it is "
        "current. Dotted names are the keys of `KEY=VALUE` on the command line; for a list, add "
        "the index of the entry (`grid.0.beta`). None is `null` in YAML.",
    ]
    for section in sections():
        of_type = f" (`type: {section.of_type}`)" if section.of_type else ""
        title = f"`{section.name}`{of_type}" if section.name else "The sweep"
        lines += ["", f"## {title}", "", section.meaning, ""]
        lines += ["| field | value | default | meaning |", "|---|---|---|---|"]
        for field in section.fields:
            own = field.name.removeprefix(f"{section.name}.")
            default = field.default if field.default in ("", REQUIRED) else f"`{field.default}`"
            cells = (f"`{own}`", field.values, default, field.meaning)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _sections(schema: Node, name: str, section: Node) -> Iterator[FieldSection]:
    of_type = _tag(section)
    fields: list[Field] = []
    inside: list[tuple[str, Node]] = []
    for key, prop in section["properties"].items():
        dotted = f"{name}.{key}" if name else key
        children: list[Node] = []
        for child in _children(schema, prop):  # it occurs twice if it may be alone or in a list
            if child not in children:
                children.append(child)
        inside += [(dotted, child) for child in children]
        fields.append(
            Field(
                dotted,
                of_type,
                "; or ".join(dict.fromkeys(_values(schema, prop))),
                _default(prop, section, key, is_section=bool(children)),
                _meaning(prop, key, children),
            )
        )
    yield FieldSection(name, of_type, _one_line(section.get("description", "")), fields)
    for dotted, child in inside:
        yield from _sections(schema, dotted, child)


def _children(schema: Node, node: Node) -> Iterator[Node]:
    """The sections that are allowed at `node`."""
    if "$ref" in node:
        yield schema["$defs"][node["$ref"].rpartition("/")[2]]
    for form in (*node.get("anyOf", ()), *node.get("oneOf", ())):
        yield from _children(schema, form)
    if isinstance(node.get("items"), dict):
        yield from _children(schema, node["items"])


def _values(schema: Node, node: Node) -> Iterator[str]:
    """Allowed values, one text for each kind."""
    forms = [*node.get("anyOf", ()), *node.get("oneOf", ())]
    if forms:
        for form in forms:
            yield from _values(schema, form)
    elif "$ref" in node:
        [child] = _children(schema, node)
        tag = _tag(child)
        yield f"a section with type: {tag}" if tag else "a section"
    elif "const" in node:
        yield json.dumps(node["const"])
    elif "enum" in node:
        yield f"one of {', '.join(map(str, node['enum']))}"
    elif node.get("type") == "array":
        if "prefixItems" in node:
            yield f"a list of {len(node['prefixItems'])}"
        else:
            yield f"a list of: {'; or '.join(_values(schema, node['items']))}"
    else:
        yield f"{_KINDS.get(node.get('type', ''), 'anything')}{_range(node)}"


_KINDS = {
    "string": "text",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "object": "a mapping",
}


def _range(node: Node) -> str:
    bounds = [
        f"{sign} {node[key]}"
        for key, sign in (
            ("minimum", ">="),
            ("exclusiveMinimum", ">"),
            ("maximum", "<="),
            ("exclusiveMaximum", "<"),
        )
        if key in node
    ]
    return f" {' and '.join(bounds)}" if bounds else ""


def _default(prop: Node, section: Node, key: str, *, is_section: bool) -> str:
    if key in section.get("required", ()):
        return REQUIRED
    default = prop.get("default", {})  # the schema has no default for empty mappings
    return "" if is_section and isinstance(default, dict) else json.dumps(default)


def _meaning(prop: Node, key: str, children: list[Node]) -> str:
    if key == "type":
        return "Selects the type of the section."
    texts = [prop, *children]  # pydantic omits a description that equals the section's
    return _one_line(next((text["description"] for text in texts if "description" in text), ""))


def _tag(section: Node) -> str:
    return str(section["properties"].get("type", {}).get("const", ""))


def _one_line(text: str) -> str:
    return " ".join(text.split())
