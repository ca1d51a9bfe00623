"""The `init` command: a first spec from your data, your policy and your reward."""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefsweep.orchestrator.commands.fields import schema_text
from prefsweep.orchestrator.display.terminal import say
from prefsweep.sweeps.errors import UsageError

if TYPE_CHECKING:
    from prefsweep.workers.inspection import Found

DEFAULT_POLICY = "HuggingFaceTB/SmolLM2-135M-Instruct"
NO_REWARD = "none"
_FUNCTION = re.compile(r"([A-Za-z_][\w.]*|.+\.py):[A-Za-z_]\w*")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


def init(
    data: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="DATA",
            help="Pairs, completions or prompts: a file, a folder, or a dataset of the hub. "
            "Default: built-in prompts.",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help=f"Hub id, folder or builtin:tiny-gpt2. Default: {DEFAULT_POLICY}."),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            help="rewards.py:function, vader, a classifier (hub id, folder or "
            "builtin:tiny-classifier), or none."
        ),
    ] = None,
    label: Annotated[
        str, typer.Option(help="Label of the classifier whose score is the reward.")
    ] = "POSITIVE",
    chat: Annotated[
        bool | None,
        typer.Option(
            help="Read prompts as chat messages. Default: decided from the data and the policy."
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OURS=YOURS",
            help="Our column name and yours, if they differ, for example prompt=question.",
        ),
    ] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of the dataset.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the dataset: train[:1000].")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the sweep. Default: the data's.")
    ] = None,
    to: Annotated[str, typer.Option(metavar="FILE.yaml", help="The spec to write.")] = "sweep.yaml",
) -> None:
    """Write a first spec from your data: small, commented and valid.

    On a terminal, it asks for missing options. It never overwrites a file.
    """
    from prefsweep.orchestrator.planning.first_spec import FirstSweep, described, write_spec
    from prefsweep.sweeps.load import parse_spec

    _require_free(to)
    if data is None:
        data = _asked("Data (file, folder or hub dataset; empty: built-in prompts)", "")
    columns = dict(_pair(each) for each in column or ())
    policy = policy or _asked("Policy (hub id, folder or builtin:tiny-gpt2)", DEFAULT_POLICY)
    found = None
    if data:
        found = _inspected(_source(data, config, split), columns, policy, chat)
        say(f"{data}: {described(found)}")
        for line in found.said:
            say(f"note: {line}")
    section = _reward(reward, found, label, is_chat=found is not None and found.chat)
    sweep_name = name or _name(data)
    is_chat = found.chat if found is not None else bool(chat)
    text = write_spec(FirstSweep(sweep_name, policy, is_chat, section, found))
    spec = parse_spec(text, to)  # raises SpecError before anything is written
    if spec.reward is not None and spec.reward.type == "callable":
        from prefsweep.workers.functions import load_function

        load_function(spec.reward.function)
    _write(Path(to), text)
    say(f"wrote {to}: {len(spec.trials())} trials. Next:")
    say(f"  prefsweep plan {to}")
    say(f"  prefsweep run {to}")


def _require_free(to: str) -> None:
    if os.path.lexists(to):
        raise UsageError(f"--to {to}: the file exists and is not overwritten; give another name")


def _asked(question: str, default: str) -> str:
    """The answer on a terminal; elsewhere the default."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return default
    return typer.prompt(question, default=default, show_default=bool(default)).strip()


def _pair(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not (ours and equals and theirs):
        raise UsageError(f"--column {text}: write OURS=YOURS, as in prompt=question")
    return ours, theirs


def _source(data: str, config: str | None, split: str | None) -> dict[str, str]:
    """The fields of `entry` that name the data."""
    is_file = os.path.isfile(data) or data.startswith("package:")
    looks_like_one = data.startswith(("/", ".", "~")) or Path(data).suffix.lower() in _SUFFIXES
    if looks_like_one and not os.path.exists(os.path.expanduser(data)) and not is_file:
        raise UsageError(f"--from {data}: there is no such file or folder")
    if is_file:
        if config or split:
            raise UsageError("--config and --split are for datasets, not for a file")
        return {"path": data}
    named = {"config": config, "split": split}
    return {"dataset": data, **{key: value for key, value in named.items() if value}}


_SUFFIXES = {".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".txt", ".gz"}


def _inspected(
    source: dict[str, str], columns: dict[str, str], policy: str, chat: bool | None
) -> "Found":
    """Inspect the data. Without `chat`, it is read as chat if the policy has a chat template or the
    data has messages."""
    from prefsweep.workers.inspection import has_chat_template, inspect

    found = inspect(source, columns, chat=chat)
    template = has_chat_template(policy)
    if found.chat and template is False:
        raise UsageError(
            f"--from {found.source.get('path') or found.source.get('dataset')}: it holds chat "
            f"messages, and --policy {policy} has no chat template; give an instruct model, or "
            "data of plain texts"
        )
    if template and chat is None and not found.chat:
        found = inspect(source, columns, chat=True)
    return found


def _reward(
    reward: str | None, found: "Found | None", label: str, *, is_chat: bool
) -> dict[str, Any] | None:
    """The reward section. Raises UsageError if one is needed and not given."""
    is_needed = found is None or found.stage in ("prompts", "completions")
    if reward is None:
        question = "Reward (rewards.py:function, vader, a classifier's hub id"
        question += ")" if is_needed else ", none)"
        reward = _asked(question, "" if is_needed else NO_REWARD)
    if reward == NO_REWARD and not is_needed:
        return None
    if reward in ("", NO_REWARD):
        raise UsageError(
            "--reward is needed, because completions have to be scored: rewards.py:function (your "
            "own), vader (sentiment), or the hub id of a classifier"
        )
    if reward == "vader":
        return {"type": "vader", "over": "completion"}
    if _FUNCTION.fullmatch(reward) and not reward.startswith(("builtin:", "package:")):
        return {"type": "callable", "function": reward}
    over = {"over": "completion"} if is_chat else {}
    section = {"type": "classifier", "model": reward, "label": label, **over}
    return {**section, "train": True} if reward.startswith("builtin:") else section


def _name(data: str | None) -> str:
    """A sweep name made from the data's name."""
    stem = Path(data.rstrip("/")).name.partition(".")[0] if data else "first"
    return _NOT_IN_NAMES.sub("-", stem).strip("-._")[:64] or "sweep"


def _write(path: Path, text: str) -> None:
    """Write the spec. Also write the schema that its first line names, if it is missing."""
    from prefsweep.sweeps.schema import SCHEMA_FILE

    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        beside = path.parent / SCHEMA_FILE
        if not beside.exists():
            beside.write_text(f"{schema_text()}\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--to {path} cannot be written: {error.strerror}") from None
