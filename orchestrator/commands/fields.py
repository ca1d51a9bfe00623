"""The `explain` and `schema` commands: the fields of a spec, for people and for editors."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from prefsweep.orchestrator.display.terminal import console, say
from prefsweep.sweeps.errors import UsageError


def explain(
    field: Annotated[
        str | None,
        typer.Argument(
            help="Dotted name of a field, or its last part. Default: print all fields as Markdown."
        ),
    ] = None,
) -> None:
    """Explain a field of a spec: its meaning, allowed values and default."""
    from prefsweep.sweeps.fields import MAX_SHOWN, explained, reference

    if field is None:
        say(reference())
        return
    found = explained(field)
    for each in found[:MAX_SHOWN]:
        of_type = f" (type: {each.of_type})" if each.of_type else ""
        console.print(Text(f"{each.name}{of_type}", "bold"))
        console.print(Text(f"  {each.meaning}"))
        default = f"\n  default: {each.default}" if each.default else ""
        console.print(Text(f"  value: {each.values}{default}"))
    if len(found) > MAX_SHOWN:
        say(f"and {len(found) - MAX_SHOWN} more; use a longer part of the dotted name")


def schema(
    to: Annotated[
        str | None,
        typer.Option(metavar="FILE.json", help="File to write; without it, print."),
    ] = None,
) -> None:
    """Write the JSON Schema of a spec, with which editors complete and check the YAML.

    Put the file in the folder of the spec. The first line of the spec must be
    `# yaml-language-server: $schema=sweep.schema.json`.
    """
    if to is None:
        say(schema_text())
        return
    try:
        Path(to).write_text(f"{schema_text()}\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--to {to} cannot be written: {error.strerror}") from None
    say(to)


def schema_text() -> str:
    """The JSON Schema of a spec, as text."""
    from prefsweep.sweeps.schema import spec_schema

    return json.dumps(spec_schema(), indent=1)
