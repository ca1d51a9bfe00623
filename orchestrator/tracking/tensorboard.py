"""TensorBoard event files: a folder per trial, in the sweep's folder.

Event files can only grow, and a driver that died may have written a part of a trial. Therefore a
trial's files are written anew by each driver that runs it, from its metrics.jsonl.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefsweep.orchestrator.tracking.rows import STEP, summary, without_secrets
from prefsweep.sweeps.records import TrialResult

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

FOLDER = "tensorboard"
"""Its folder inside the sweep's."""
EVENTS = "events.out.tfevents.*"


class TensorBoard:
    """A Tracker that writes event files."""

    title = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._writers: dict[str, SummaryWriter] = {}
        self._steps: dict[str, int] = {}

    def start_trial(self, trial_id: str, name: str, config: Mapping[str, object]) -> None:
        from tensorboardX import SummaryWriter

        if trial_id in self._writers:
            return
        folder = self._folder / name
        if self._folder.is_symlink() or folder.is_symlink():  # others may write to the store
            raise OSError(f"{folder} is a link to another folder")
        for file in folder.glob(EVENTS):
            file.unlink()
        writer: Any = SummaryWriter(str(folder))
        self._writers[trial_id], self._steps[trial_id] = writer, 0
        writer.add_text("config", json.dumps(without_secrets(config), indent=2))

    def log(self, trial_id: str, row: Mapping[str, float]) -> None:
        writer: Any = self._writers.get(trial_id)
        if writer is None:
            return
        self._steps[trial_id] = int(row.get(STEP, self._steps[trial_id]))
        for name, value in row.items():
            if name != STEP:
                writer.add_scalar(name, value, self._steps[trial_id])
        writer.flush()

    def finish_trial(self, result: TrialResult) -> None:
        writer: Any = self._writers.pop(result.trial_id, None)
        if writer is None:
            return
        for name, value in summary(result).items():
            if isinstance(value, float):
                writer.add_scalar(f"final/{name}", value, self._steps[result.trial_id])
        writer.close()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
