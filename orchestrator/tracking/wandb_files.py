"""Where W&B puts its temporary files, and which names its artifacts have."""

import atexit
import hashlib
import re
import shutil
import tempfile
from contextlib import suppress
from functools import cache

from prefsweep.orchestrator.store.scratch import scratch_home, scratch_name

NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
"""What W&B does not take in an artifact's name: a combination of losses has a plus."""
MAX_NAME = 128
"""Characters that W&B takes in the name of an artifact or a run."""


@cache
def move_temporary_folders() -> None:
    """Let W&B write its media and artifacts to a scratch folder of this process.

    When it is imported, it makes two folders in the system's temporary folder, which stay there if
    the process is killed. A scratch folder is deleted at exit, or else by the next run.
    """
    with suppress(ImportError, AttributeError):  # another version may have no such folders
        from wandb.sdk.artifacts.artifact import Artifact
        from wandb.sdk.data_types._private import MEDIA_TMP

        folder = scratch_home() / scratch_name()
        folder.mkdir()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for made in (MEDIA_TMP, Artifact._TMP_DIR):
            made.cleanup()
            made.name = tempfile.mkdtemp(dir=folder)


def artifact_name(name: str) -> str:
    """The name as W&B takes it; of a long one the beginning and a hash of the whole."""
    return shortened(name, NOT_IN_NAMES.sub("-", name))


def shortened(name: str, shown: str | None = None) -> str:
    """A name of at most MAX_NAME characters; of a long one the beginning of what is shown and a
    hash of the whole."""
    shown = name if shown is None else shown
    if len(shown) <= MAX_NAME:
        return shown
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{shown[: MAX_NAME - len(digest) - 1]}-{digest}"
