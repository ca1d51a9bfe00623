"""The paths in a store, relative to its root, and the patterns of names that prefsweep writes.

prefsweep only deletes files and folders whose names match these patterns. It never deletes other
content of a store's folder.
"""

import re

from prefsweep.sweeps.identity import STAGE_VERSIONS
from prefsweep.sweeps.spec import NAME_PATTERN

MARKER = "prefsweep-store.json"
"""File that marks a folder as a store; every run writes it if it is missing."""
DELETING = "gc.lock"
"""Locked by `gc` while it deletes, and by a run while it changes what its sweep references."""
ASIDE = "aside"
"""Folder for damaged files that were set aside; `prefsweep gc` deletes them."""
FOLDERS = ("artifacts", "trials", "sweeps", "tmp", ASIDE)
"""Top-level folders of a store."""
_FINGERPRINT_CHARS = 16
"""Hex digits of a fingerprint in a path; the manifest has all digits."""

_FINGERPRINT = f"[0-9a-f]{{{_FINGERPRINT_CHARS}}}"
_STAGES = "|".join((*STAGE_VERSIONS, "untrained", "input", "preflight"))
_ARTIFACT = re.compile(rf"(?:{_STAGES})-{_FINGERPRINT}")
_TRIAL = re.compile(r"[0-9a-f]{12}")
_EVALUATION = re.compile(_FINGERPRINT)
_ASIDE = re.compile(r"(?:artifacts|trials|sweeps)~.+\.[0-9a-f]{8}")
_SCRATCH = re.compile(r"[0-9a-f]{8}-\d+-(?:\d+|None)-[0-9a-f]{8}|doctor-[0-9a-f]{12}")
_SWEEP = re.compile(NAME_PATTERN)


class Paths:
    """The paths of a store."""

    def artifact(self, stage: str, fingerprint: str) -> str:
        """Path of a stage's artefact, relative to the store."""
        return f"artifacts/{stage}-{fingerprint[:_FINGERPRINT_CHARS]}"

    def shard(self, stage: str, fingerprint: str, index: int) -> str:
        """Path of one shard of a sharded artefact."""
        return f"{self.artifact(stage, fingerprint)}/shard-{index:05d}.parquet"

    def trial(self, trial_id: str, *parts: str) -> str:
        """Path inside a trial's folder."""
        return "/".join(["trials", trial_id, *parts])

    def evaluation(self, trial_id: str, fingerprint: str) -> str:
        """Path of an evaluation of a trial."""
        return self.trial(trial_id, "evaluations", fingerprint[:_FINGERPRINT_CHARS])

    def sweep(self, name: str, *parts: str) -> str:
        """Path inside a sweep's folder."""
        return "/".join(["sweeps", name, *parts])

    def scratch(self, name: str) -> str:
        """Path of a temporary file."""
        return f"tmp/{name}"


def is_artifact_name(name: str) -> bool:
    """Whether a name in `artifacts` is a stage's; measurements of GPU memory are not."""
    return _ARTIFACT.fullmatch(name) is not None


def is_trial_id(name: str) -> bool:
    """Whether a name in `trials` is a trial ID."""
    return _TRIAL.fullmatch(name) is not None


def is_evaluation_name(name: str) -> bool:
    """Whether a name in a trial's `evaluations` is an evaluation's."""
    return _EVALUATION.fullmatch(name) is not None


def is_aside_name(name: str) -> bool:
    """Whether a name in `aside` was given by `Store.set_aside`."""
    return _ASIDE.fullmatch(name) is not None


def is_scratch_name(name: str) -> bool:
    """Whether a name in `tmp` is that of a temporary file of prefsweep."""
    return _SCRATCH.fullmatch(name) is not None


def is_sweep_name(name: str) -> bool:
    """Whether this is a valid sweep name; `.DS_Store`, `.nfs0001` and `lost+found` are not."""
    return _SWEEP.fullmatch(name) is not None
