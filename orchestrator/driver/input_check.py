"""Checks that the inputs named in the spec are still those the sweep was started with.

A resumed sweep keeps the identities that were recorded when it started. If an input has changed
since, results made from the new content would be mixed with results made from the old one.
"""

import logging
from collections.abc import Callable
from functools import cache

from prefsweep.orchestrator.state.inputs import (
    SECTIONS,
    input_identity,
    is_stored,
    local_members,
    named_input,
)
from prefsweep.orchestrator.state.sweep import UNTRAINED, Sweep
from prefsweep.sweeps.errors import UsageError
from prefsweep.sweeps.spec import FirstTokens

log = logging.getLogger(__name__)

SHOWN_CHARS = 19
"""Characters of a content hash shown in a message: its kind and twelve digits."""


def require_unchanged(sweep: Sweep, is_unfinished: Callable[[str], bool]) -> None:
    """Raises UsageError if an input has changed or is missing, and an unfinished stage reads it.

    If a local input changed after every stage that reads it finished, logs it and continues. Inputs
    that were copied into the store for workers on other machines are read there and cannot change.
    """
    local, is_unfinished = local_members(sweep.spec), cache(is_unfinished)  # it reads all trials
    for member in SECTIONS:
        recorded = getattr(sweep.inputs, member)
        if not recorded or is_stored(sweep.store, sweep.spec, sweep.inputs, member):
            continue
        waiting = [stage for stage in _readers(sweep, member) if is_unfinished(stage)]
        if waiting or member in local:
            _compare(sweep, member, recorded, waiting)


def _readers(sweep: Sweep, member: str) -> list[str]:
    """Stages that read an input."""
    prompts, entered = sweep.spec.prompts, sweep.entered
    of_prompts = ["eval_prompts"] if entered else ["prompts", "eval_prompts"]
    match member:
        case "policy_corpus" | "reward_corpus":
            return [member.removesuffix("_corpus")]
        case "prompts":
            return of_prompts
        case "entry":
            return [] if entered is None else [entered]
    if sweep.made[member]:
        return [member]
    is_cutting = member == "policy" and isinstance(getattr(prompts, "take", None), FirstTokens)
    users = ["completions", "reference"] if member == "policy" else ["scores"]
    made = [stage for stage in users if stage in sweep.stages and stage != entered]
    return [*(of_prompts if is_cutting else []), *made, UNTRAINED, "trials"]


def _compare(sweep: Sweep, member: str, recorded: str, waiting: list[str]) -> None:
    named, name = named_input(sweep.spec, member), sweep.spec.name
    still = ", ".join(waiting)
    try:
        now = input_identity(sweep.spec, member)
    except UsageError as error:
        if waiting:
            raise UsageError(
                f"{named}: it is missing ({error}), and sweep {name!r} still needs it for {still}. "
                "Restore it, or start the command in the folder that the path is relative to, and "
                "run the same command again. To use another input, give it to `prefsweep run`, "
                "which makes new artifacts beside the old ones"
            ) from None
        return
    if now == recorded:
        return
    if not waiting:
        log.info("%s: it has changed, but every stage that reads it is finished", named)
        return
    raise UsageError(
        f"{named}: it has changed since sweep {name!r} was started (it is {_short(now)}, it was "
        f"{_short(recorded)}), and is still needed for {still}. {_remedy(member, recorded)}. To "
        "use the new input, give it to `prefsweep run`, which makes new artifacts beside the old"
    )


def _short(identity: str) -> str:
    is_hash = "@" not in identity and not identity.startswith("builtin")
    return identity[:SHOWN_CHARS] if is_hash else identity


def _remedy(member: str, recorded: str) -> str:
    """How to restore the old input."""
    if recorded.startswith("builtin"):
        return "Resume with the version of prefsweep that it was started with"
    if "@" in recorded:
        field, commit = SECTIONS[member], recorded.rpartition("@")[2]
        return f"Set {field}.revision={commit} to use the old input"
    return "Restore the old input and run the same command again"
