"""Where everything lies in a store, relative to its root, and which names are the store's own.

What prefsweep deletes from a store has a name of one of these forms; anything else in a store's
folder belongs to somebody else and is left alone.
"""

import re

from prefsweep.sweeps.identity import STAGE_VERSIONS
from prefsweep.sweeps.spec import NAME_PATTERN

MARKER = "prefsweep-store.json"
"""File that says that a folder is a store; every run makes sure of it."""
DELETING = "gc.lock"
"""Locked by `gc` while it deletes, and by a run while it changes what its sweep refers to."""
ASIDE = "aside"
"""Where damaged things are kept until somebody has looked at them (`prefsweep gc`)."""
FOLDERS = ("artifacts", "trials", "sweeps", "tmp", ASIDE)
"""Top-level folders of a store."""
_FINGERPRINT_CHARS = 16
"""Hex digits of a fingerprint in a path; the manifest has it whole."""

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
        """Path of something that is of no use to anybody after this run."""
        return f"tmp/{name}"


def is_artifact_name(name: str) -> bool:
    """Whether a name in `artifacts` is one that a stage gives; measurements of GPUs are not."""
    return _ARTIFACT.fullmatch(name) is not None


def is_trial_id(name: str) -> bool:
    """Whether a name in `trials` is a trial's."""
    return _TRIAL.fullmatch(name) is not None


def is_evaluation_name(name: str) -> bool:
    """Whether a name in a trial's `evaluations` is an evaluation's."""
    return _EVALUATION.fullmatch(name) is not None


def is_aside_name(name: str) -> bool:
    """Whether a name in `aside` is one that `Store.put_aside` gives."""
    return _ASIDE.fullmatch(name) is not None


def is_scratch_name(name: str) -> bool:
    """Whether a name in `tmp` is one that prefsweep gives its temporary files."""
    return _SCRATCH.fullmatch(name) is not None


def is_sweep_name(name: str) -> bool:
    """Whether a sweep can have this name: `.DS_Store`, `.nfs0001` and `lost+found` are none."""
    return _SWEEP.fullmatch(name) is not None
