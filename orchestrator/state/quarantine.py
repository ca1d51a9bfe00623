"""Prompts that kill whoever works on them (bisection.py finds them) are left out from then on.

What was made without a prompt is never mixed with what was made with it: the quarantined prompts
are part of the sweep's inputs, and so of the fingerprints of their stage and of all after it. They
are recorded with the spec; a later run leaves them out too, unless it restarts what failed.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from prefsweep.orchestrator.state.sweep import SHARDED, Sweep
from prefsweep.sweeps.errors import SweepError
from prefsweep.sweeps.identity import Fingerprints, Inputs
from prefsweep.sweeps.load import validate_spec

log = logging.getLogger(__name__)


def quarantine(sweep: Sweep, killers: Mapping[str, Sequence[str]]) -> Sweep:
    """The sweep without the prompts that kill workers (stage -> prompt ids).

    Finished shards do not hold these prompts, so the new sweep takes them over.
    """
    before = sweep.inputs.quarantined
    stages = {*before, *killers}
    merged = {s: sorted({*before.get(s, ()), *killers.get(s, ())}) for s in sorted(stages)}
    after = _with(sweep, merged)
    for name in SHARDED:
        if name in sweep.stages and name != sweep.entered:
            _take_over(sweep, after, name)
    for stage, prompt_ids in killers.items():
        log.warning(
            "%s: the prompts %s end every worker that takes them; the sweep goes on without them "
            "(--restart-errored tries them again)",
            stage,
            ", ".join(prompt_ids),
        )
    return after


def as_recorded(sweep: Sweep) -> Sweep:
    """The sweep without what its last run left out, where it would meet the same again."""
    path = sweep.store.sweep(sweep.spec.name, "spec.json")
    document = sweep.store.read_object(path)
    try:
        inputs = Inputs(**document["inputs"])
        if not inputs.quarantined:
            return lifted(sweep)
        spec = validate_spec(document["spec"], sweep.store.display(path))
        then = Fingerprints(spec, replace(inputs, quarantined={}))
        now = Fingerprints(sweep.spec, replace(sweep.inputs, quarantined={}))
        same = {
            stage: list(prompt_ids)
            for stage, prompt_ids in inputs.quarantined.items()
            if getattr(then, stage) == getattr(now, stage)
        }
    except (SweepError, TypeError, KeyError, AttributeError):  # of another version, or damaged
        return sweep
    return _with(sweep, same)


def lifted(sweep: Sweep) -> Sweep:
    """The sweep with all its prompts."""
    return _with(sweep, {})


def num_quarantined(sweep: Sweep) -> int:
    """Prompts that the sweep leaves out."""
    return sum(map(len, sweep.inputs.quarantined.values()))


def _with(sweep: Sweep, quarantined: dict[str, list[str]]) -> Sweep:
    return Sweep(sweep.spec, replace(sweep.inputs, quarantined=quarantined), sweep.storage)


def _take_over(old: Sweep, new: Sweep, stage: str) -> None:
    """Copy finished shards to where the new sweep looks for them."""
    store, source, target = old.store, old.path(stage), new.path(stage)
    if source == target:
        return
    for name in store.names(source):
        if not name.endswith(".parquet") or store.shard_manifest(f"{source}/{name}") is None:
            continue
        if store.shard_manifest(f"{target}/{name}") is not None:  # made by another run
            continue
        for file in (name, f"{name}.json"):  # the manifest last
            data = store.read(f"{source}/{file}")
            if data is not None:
                store.write(f"{target}/{file}", data)
