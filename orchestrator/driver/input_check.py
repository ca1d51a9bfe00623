"""Whether what a spec names still is what the sweep was started with, where it is to be read.

A sweep goes on under the identities that were recorded when it started: what is made of another
content would be mixed with what was made of the old one, and nobody would know.
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
"""Of a content hash in a message: its kind and twelve digits."""


def require_unchanged(sweep: Sweep, is_unfinished: Callable[[str], bool]) -> None:
    """Raises UsageError if an input is another one or gone, and an unfinished stage would read it.

    One on this disk that has changed since all that read it was finished is only told. What was put
    into the store for workers on other machines is read there, and cannot change.
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
    """The stages that read an input."""
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
                f"{named}: it is gone ({error}), and sweep {name!r} still needs it for {still}. "
                "Put it back, or start where that path leads to it, and run the same command "
                "again; or give another one to `prefsweep run`, which makes new artefacts beside "
                "the old ones"
            ) from None
        return
    if now == recorded:
        return
    if not waiting:
        log.info("%s: it has changed since, but all that reads it is finished", named)
        return
    raise UsageError(
        f"{named}: it has changed since sweep {name!r} was started (it is {_short(now)}, it was "
        f"{_short(recorded)}), and is still needed for {still}. {_remedy(member, recorded)}; or "
        "give the new one to `prefsweep run`, which makes new artefacts beside the old ones"
    )


def _short(identity: str) -> str:
    is_hash = "@" not in identity and not identity.startswith("builtin")
    return identity[:SHOWN_CHARS] if is_hash else identity


def _remedy(member: str, recorded: str) -> str:
    """How to have the old one again."""
    if recorded.startswith("builtin"):
        return "Go on with the version of prefsweep that it was started with"
    if "@" in recorded:
        field, commit = SECTIONS[member], recorded.rpartition("@")[2]
        return f"Set {field}.revision={commit} to have the old one"
    return "Put the old one back and run the same command again"
