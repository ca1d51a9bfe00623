"""A trial's checkpoints in the store: published atomically, used only if they are complete.

A checkpoint is a folder with a manifest, written under a temporary name and then renamed (on an
object store, the manifest is written last). Besides the trainer's files, it contains the lines of
metrics.jsonl up to its step, so that a resumed trial continues its log. The newest two are kept.
"""

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from prefsweep.orchestrator.state.sweep import Sweep, Trial
from prefsweep.orchestrator.store.store import MANIFEST, Store, new_manifest
from prefsweep.sweeps.errors import DamagedError

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
METRICS, STATE = "metrics.jsonl", "trainer_state.json"
NEEDED = {
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    STATE,
    "window.json",
    METRICS,
}
"""Files without which training could resume, but not exactly (besides the weights, which have one
of several names)."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: the step after which it was saved, and its folder on this machine."""

    step: int
    folder: Path

    @property
    def metrics(self) -> bytes:
        """The lines of metrics.jsonl up to its step."""
        return (self.folder / METRICS).read_bytes()


def newest_checkpoint(sweep: Sweep, trial: Trial) -> Checkpoint | None:
    """The newest complete checkpoint; None if there is none.

    Newer checkpoints that are damaged are removed, with a line in the log, so that their steps can
    be saved again. Raises StoreError if one cannot be read now, which does not mean damage.
    """
    store = Store(sweep.storage)  # a new store, which has not verified anything yet
    for step in reversed(_steps(store, trial)):
        path = _path(store, trial, step)
        try:
            return _open(store, trial, step)
        except DamagedError as error:
            log.warning("a checkpoint is skipped: %s", error)
            store.delete(path)
    return None


def newest_step(sweep: Sweep, trial: Trial) -> int:
    """Step of the newest checkpoint that seems complete, 0 if none; does not read its content."""
    steps = _steps(sweep.store, trial)
    whole = (s for s in reversed(steps) if sweep.store.manifest(_path(sweep.store, trial, s)))
    return next(whole, 0)


def begun_in_group(sweep: Sweep, trial: Trial, step: int) -> bool:
    """Whether the checkpoint of a step was saved by a group of trials."""
    return bool(sweep.store.read_object(f"{_path(sweep.store, trial, step)}/{STATE}").get("group"))


def publish_checkpoint(sweep: Sweep, trial: Trial, step: int, folder: Path, metrics: bytes) -> None:
    """Publish a trainer's checkpoint by moving its folder, and delete the oldest checkpoints.

    If another run of the same trial has published this checkpoint, that one is kept.
    """
    store, path = sweep.store, _path(sweep.store, trial, step)
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that is not used
    (folder / METRICS).write_bytes(metrics)
    store.publish(path, folder, new_manifest(trial.trial_id, step, 0.0))
    shutil.rmtree(folder, ignore_errors=True)
    for old in _steps(store, trial)[:-KEPT_CHECKPOINTS]:
        store.delete(_path(store, trial, old))


def delete_checkpoints(sweep: Sweep, trial: Trial) -> None:
    """Delete all checkpoints of a trial."""
    sweep.store.delete(sweep.store.trial(trial.trial_id, "checkpoints"))


def _open(store: Store, trial: Trial, step: int) -> Checkpoint:
    """Raises DamagedError for a checkpoint that is incomplete or belongs to another trial."""
    path = _path(store, trial, step)
    folder = store.fetch(path)
    manifest = store.manifest(path)
    if manifest is None or (manifest.fingerprint, manifest.rows) != (trial.trial_id, step):
        raise DamagedError(f"{store.display(path)}/{MANIFEST} is not the one of step {step}")
    missing = NEEDED - manifest.files.keys()
    if missing:
        raise DamagedError(f"{store.display(path)} has no {', '.join(sorted(missing))}")
    return Checkpoint(step, folder)


def _steps(store: Store, trial: Trial) -> list[int]:
    names = store.names(store.trial(trial.trial_id, "checkpoints"))
    return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-\d{6,}", name))


def _path(store: Store, trial: Trial, step: int) -> str:
    return store.trial(trial.trial_id, "checkpoints", f"step-{step:06d}")
