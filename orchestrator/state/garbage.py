"""Finds what no sweep of a store references any more, with its size, and deletes it on request.

The spec.json of a sweep determines what it references: artefacts, trials, and its evaluations of
these trials. If any spec.json cannot be read, nothing is deleted, because its references are
unknown. Only names that match the patterns in paths.py are deleted, and only from a store.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from prefsweep.orchestrator.state.inputs import input_paths
from prefsweep.orchestrator.state.lease import LEASE, alive, read_holder
from prefsweep.orchestrator.state.marker import require_store
from prefsweep.orchestrator.state.sweep import UNTRAINED, Sweep, open_sweep
from prefsweep.orchestrator.store.paths import (
    ASIDE,
    DELETING,
    is_artifact_name,
    is_aside_name,
    is_evaluation_name,
    is_scratch_name,
    is_trial_id,
)
from prefsweep.orchestrator.store.scratch import is_abandoned, is_in_use
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.errors import StoreError, UsageError


@dataclass(frozen=True)
class Garbage:
    """A file or folder that can be deleted."""

    path: str
    what: str
    num_bytes: int


def find_garbage(store: Store) -> list[Garbage]:
    """Everything that no sweep references. Raises StoreError if a sweep cannot be read, and
    UsageError if this is not a store."""
    require_store(store)
    return [Garbage(path, what, store.num_bytes(path)) for path, what in _unreferenced(store)]


def delete_garbage(store: Store, garbage: list[Garbage]) -> list[str]:
    """Delete what `find_garbage` found; returns the messages of deletions that failed.

    Before each deletion, the references of all sweeps are checked again if a sweep has changed. A
    lock is held from this check until the deletion, so that a starting run records its references
    either before the check or after the deletion (an object store has no locks, so a run does not
    wait there).
    """
    problems: list[str] = []
    seen, still = None, set[str]()
    for item in garbage:
        with store.locked(DELETING):
            now = _state_of_sweeps(store)
            if now != seen:
                seen, still = now, {path for path, _ in _unreferenced(store)}
            if item.path in still:
                try:
                    store.delete(item.path)
                except StoreError as error:
                    problems.append(str(error))
    return problems


def _state_of_sweeps(store: Store) -> object:
    """A value that changes whenever a run starts or a sweep's references change."""
    files = [store.sweep(name, file) for name in store.sweeps() for file in ("spec.json", LEASE)]
    return files, store.file_versions(files)


def _unreferenced(store: Store) -> list[tuple[str, str]]:
    sweeps = [_read(store, name) for name in store.sweeps()]
    is_quiet = _is_quiet(store)
    return [*_unused(store, sweeps, is_quiet), *_leftovers(store, is_quiet)]


def _read(store: Store, name: str) -> Sweep:
    try:
        return open_sweep(name, store.uri)
    except UsageError as error:
        folder = store.display(store.sweep(name))
        raise StoreError(
            f"gc: sweep {name!r} cannot be read, so its references are unknown ({error}). "
            f"Run its spec again, or delete {folder}; nothing was deleted"
        ) from None


def _unused(store: Store, sweeps: list[Sweep], is_quiet: bool) -> Iterator[tuple[str, str]]:
    """Unreferenced artefacts, trials and evaluations."""
    used = {path for sweep in sweeps for path in _references(sweep)}
    for name in filter(is_artifact_name, store.names("artifacts")):
        is_being_looked_at = name.startswith("preflight-") and not is_quiet
        if f"artifacts/{name}" not in used and not is_being_looked_at:
            yield f"artifacts/{name}", "artefact"
    for trial_id in filter(is_trial_id, store.names("trials")):
        if store.trial(trial_id) not in used:
            yield store.trial(trial_id), "trial"
            continue
        evaluations = store.names(store.trial(trial_id, "evaluations"))
        for fingerprint in filter(is_evaluation_name, evaluations):
            path = store.evaluation(trial_id, fingerprint)
            if path not in used:
                yield path, "evaluation"


def _references(sweep: Sweep) -> Iterator[str]:
    for stage in sweep.fingerprints.parts:
        yield sweep.path(stage)
    yield from input_paths(sweep.store, sweep.spec, sweep.inputs)
    yield sweep.evaluation_path(UNTRAINED)
    for trial in sweep.trials:
        yield sweep.store.trial(trial.trial_id)
        yield sweep.evaluation_path(trial.trial_id)


def _leftovers(store: Store, is_quiet: bool) -> Iterator[tuple[str, str]]:
    """Damaged files, and unfinished files of ended processes.

    Those of other machines are included only while no driver of this store is alive.
    """
    for name in filter(is_aside_name, store.names(ASIDE)):
        yield f"{ASIDE}/{name}", "damaged"
    for name in filter(is_scratch_name, store.names("tmp")):
        if is_abandoned(name) or (is_quiet and not is_in_use(name)):
            yield f"tmp/{name}", "half-made"


def _is_quiet(store: Store) -> bool:
    """Whether no sweep of the store is running."""
    holders = {name: holder for name in store.sweeps() if (holder := read_holder(store, name))}
    return not alive(store, holders)
