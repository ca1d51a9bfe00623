"""Quarantine: prompts that kill every worker are skipped from then on (bisection.py finds them).

Quarantined prompts are part of the sweep's inputs, and so of the fingerprints of their stage and of
all later stages: results made without a prompt are never mixed with results made with it. They are
recorded with the spec. A later run skips them too, unless it restarts failed work.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from prefsweep.orchestrator.state.sweep import SHARDED, Sweep
from prefsweep.sweeps.errors import SweepError
from prefsweep.sweeps.identity import Fingerprints, Inputs
from prefsweep.sweeps.load import validate_spec
from prefsweep.sweeps.validation_messages import listed

log = logging.getLogger(__name__)


def quarantine(sweep: Sweep, killers: Mapping[str, Sequence[str]]) -> Sweep:
    """The sweep without the prompts that kill workers (stage -> prompt ids).

    Copies finished shards to the new sweep, because they do not contain these prompts.
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
            "%s: the prompts %s crash every worker that processes them; the sweep continues "
            "without them (--restart-errored retries them)",
            stage,
            listed(prompt_ids),
        )
    return after


def with_recorded_quarantine(sweep: Sweep) -> Sweep:
    """The sweep without the prompts that its last run quarantined, if their inputs are the same."""
    path = sweep.store.sweep(sweep.spec.name, "spec.json")
    document = sweep.store.read_object(path)
    try:
        inputs = Inputs(**document["inputs"])
        if not inputs.quarantined:
            return without_quarantine(sweep)
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


def without_quarantine(sweep: Sweep) -> Sweep:
    """The sweep with all its prompts."""
    return _with(sweep, {})


def num_quarantined(sweep: Sweep) -> int:
    """Number of prompts that the sweep skips."""
    return sum(map(len, sweep.inputs.quarantined.values()))


def _with(sweep: Sweep, quarantined: dict[str, list[str]]) -> Sweep:
    return Sweep(sweep.spec, replace(sweep.inputs, quarantined=quarantined), sweep.storage)


def _take_over(old: Sweep, new: Sweep, stage: str) -> None:
    """Copy a stage's finished shards to the path of the new sweep."""
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
