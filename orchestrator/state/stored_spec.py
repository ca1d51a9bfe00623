"""What is checked of a spec that comes from the store, which others may be able to write.

A spec that the user passes is trusted: it may name a model that brings code, or a function. One
that `resume` or `export` finds in a store needs the user's consent for that, and its identities
have to be of what it names.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prefsweep.orchestrator.state.inputs import SECTIONS, named_value
from prefsweep.sweeps.errors import UsageError
from prefsweep.sweeps.identity import Inputs
from prefsweep.sweeps.spec import CallableReward, ClassifierReward, PolicySpec, SweepSpec
from prefsweep.sweeps.texts import is_commit
from prefsweep.workers.locations import BUILTIN

if TYPE_CHECKING:
    from prefsweep.orchestrator.state.sweep import Sweep

CONSENT = "--trust-remote-code"


def require_consent(sweep: "Sweep", *, given: bool, only_policy: bool = False) -> None:
    """Raises UsageError if the stored spec runs code and the user has not consented.

    With `only_policy`, no reward is computed.
    """
    code = list(_code(sweep.spec, only_policy))
    if code and not given:
        where = sweep.store.display(sweep.store.sweep(sweep.spec.name, "spec.json"))
        raise UsageError(
            f"{where} runs code that is not prefsweep's: {' and '.join(code)}. Whoever can write "
            f"to the store may have put that there. Give {CONSENT} if you trust it, or run the "
            "sweep's own spec with `prefsweep run`"
        )


def check_identities(spec: SweepSpec, inputs: Inputs, where: str) -> None:
    """Raises UsageError for a recorded commit that is none, or not of what the spec names."""
    for member, field in SECTIONS.items():
        identity = getattr(inputs, member)
        named, revision = named_value(spec, member)
        name, at, commit = identity.rpartition("@")
        pinned = revision if is_commit(revision) else commit
        is_pinned = is_commit(commit) and commit == pinned
        is_known = name == named and (is_pinned or named.startswith(BUILTIN))
        if at and not is_known:  # else the hash of some content
            raise UsageError(
                f"{where}: the identity of {field}, {identity}, is no commit of {named}"
                + (f" at its revision {revision}" if revision else "")
                + ". The file was changed or damaged; run the sweep's own spec again, which writes "
                "it anew"
            )


def _code(spec: SweepSpec, only_policy: bool) -> Iterator[str]:
    """What runs code of others, in words."""
    models: dict[str, object] = {"policy": spec.policy}
    if not only_policy:
        models["reward"] = spec.reward
    for name, section in models.items():
        if isinstance(section, CallableReward):
            yield f"reward.function={section.function}"
        elif isinstance(section, PolicySpec | ClassifierReward) and section.trust_remote_code:
            named = f"{name}.model={section.model} at {section.revision}"
            yield f"{name}.trust_remote_code=True (the code of {named})"
