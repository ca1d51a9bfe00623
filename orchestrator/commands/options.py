"""Arguments and options that several commands share, and which of them exclude each other."""

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from prefsweep.orchestrator.state.hints import DEFAULT_STORAGE, STORAGE_VARIABLE
from prefsweep.sweeps.errors import SweepError, UsageError
from prefsweep.sweeps.records import Stage

if TYPE_CHECKING:
    from prefsweep.sweeps.records import Errored


def _complete_spec(incomplete: str) -> list[str]:
    """Shipped sweeps and YAML files that begin like what was typed, for shell completion."""
    from pathlib import Path

    from prefsweep.sweeps.load import shipped_names

    folder, _, start = incomplete.rpartition("/")
    place = Path(f"{folder}/" if folder or incomplete.startswith("/") else ".")
    files = sorted(place.iterdir()) if place.is_dir() else []
    prefix = incomplete[: len(incomplete) - len(start)]
    named = [f"{prefix}{f.name}{'/' if f.is_dir() else ''}" for f in files]
    return [name for name in (*shipped_names(), *named) if name.startswith(incomplete)]


def _complete_name(ctx: typer.Context, incomplete: str) -> list[str]:
    """Sweeps of the store that begin like what was typed."""
    from prefsweep.orchestrator.store.store import Store

    storage = ctx.params.get("storage") or os.environ.get(STORAGE_VARIABLE) or DEFAULT_STORAGE
    with suppress(SweepError):
        return [name for name in Store(storage).sweeps() if name.startswith(incomplete)]
    return []


Spec = Annotated[
    str,
    typer.Argument(
        help="A YAML file, or the name of a shipped sweep.", autocompletion=_complete_spec
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="training.max_steps=50 ...")
]
Storage = Annotated[str, typer.Option(help="Folder or URI of the store.", envvar=STORAGE_VARIABLE)]
Name = Annotated[
    str, typer.Argument(help="Name of a sweep in the store.", autocompletion=_complete_name)
]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster: auto or HOST:PORT. Default: RAY_ADDRESS, or this machine."),
]
Until = Annotated[Stage, typer.Option(help="Last stage to run.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Inline = Annotated[bool, typer.Option("--inline", help="Run in this process, without Ray.")]
Restart = Annotated[
    bool, typer.Option("--restart-errored", help="Restart all failed trials from scratch.")
]
Resume = Annotated[
    bool,
    typer.Option("--resume-errored", help="Resume all failed trials from their latest checkpoint."),
]
Skip = Annotated[bool, typer.Option("--skip-errored", help="Skip all failed trials.")]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Allow code that the stored spec names to run: a model's own code, or a reward "
        "function.",
    ),
]


def errored_trials(*, restart: bool, resume: bool, skip: bool) -> "Errored":
    """What to do with failed trials, from the three flags. Raises UsageError."""
    exclusive(
        {"--restart-errored": restart, "--resume-errored": resume, "--skip-errored": skip},
    )
    return "restart" if restart else "resume" if resume else "skip" if skip else "retry"


def exclusive(given: Mapping[str, object]) -> None:
    """Raises UsageError if more than one of these options is given."""
    both = [option for option, value in given.items() if value]
    if len(both) > 1:
        raise UsageError(f"{' and '.join(both)} exclude each other; give one")
