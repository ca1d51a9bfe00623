"""Checks of a spec that is read from a store, to which other users may be able to write.

A spec that the user passes is trusted: it may name a model with its own code, or a function. For a
spec that `resume` or `export` reads from a store, the user has to consent to running such code, and
the recorded identities have to match what the spec names.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prefsweep.orchestrator.state.inputs import SECTIONS, named_value
from prefsweep.sweeps.errors import UsageError
from prefsweep.sweeps.identity import Inputs
from prefsweep.sweeps.sources import is_commit
from prefsweep.sweeps.spec import CallableReward, ClassifierReward, PolicySpec, SweepSpec
from prefsweep.workers.locations import BUILTIN

if TYPE_CHECKING:
    from prefsweep.orchestrator.state.sweep import Sweep

CONSENT = "--trust-remote-code"


def require_consent(sweep: "Sweep", *, given: bool, only_policy: bool = False) -> None:
    """Raises UsageError if the stored spec runs code and the user has not consented.

    With `only_policy`, code of the reward is ignored, because no reward is computed.
    """
    code = list(_code(sweep.spec, only_policy))
    if code and not given:
        where = sweep.store.display(sweep.store.sweep(sweep.spec.name, "spec.json"))
        raise UsageError(
            f"{where} runs code from outside prefsweep: {' and '.join(code)}. Anyone who can write "
            f"to the store can change this. Pass {CONSENT} if you trust it, or run the sweep's "
            "original spec with `prefsweep run`"
        )


def check_identities(spec: SweepSpec, inputs: Inputs, where: str) -> None:
    """Raises UsageError if a recorded identity is not a commit of the repository in the spec."""
    for member, field in SECTIONS.items():
        identity = getattr(inputs, member)
        named, revision = named_value(spec, member)
        name, at, commit = identity.rpartition("@")
        pinned = revision if is_commit(revision) else commit
        is_pinned = is_commit(commit) and commit == pinned
        is_known = name == named and (is_pinned or named.startswith(BUILTIN))
        if at and not is_known:  # without an @ it is a hash of content
            raise UsageError(
                f"{where}: the identity of {field}, {identity}, is not a commit of {named}"
                + (f" at its revision {revision}" if revision else "")
                + ". The file was changed or damaged; run the sweep's original spec again, which "
                "rewrites it"
            )


def _code(spec: SweepSpec, only_policy: bool) -> Iterator[str]:
    """Describes each part of the spec that runs code from outside prefsweep."""
    models: dict[str, object] = {"policy": spec.policy}
    if not only_policy:
        models["reward"] = spec.reward
    for name, section in models.items():
        if isinstance(section, CallableReward):
            yield f"reward.function={section.function}"
        elif isinstance(section, PolicySpec | ClassifierReward) and section.trust_remote_code:
            named = f"{name}.model={section.model} at {section.revision}"
            yield f"{name}.trust_remote_code=True (the code of {named})"
