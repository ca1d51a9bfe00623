"""Adds to a checkpoint what transformers leaves out: the state of the log window, and the sums.

A training that resumes from a checkpoint in the middle of a window (after a stop request) then
gives the same log lines and the same mean loss as a training that was never stopped.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefsweep.workers.deferred import read_metrics

WINDOW_FILE = "window.json"
"""File in a checkpoint with the state of the log window."""
STATE_FILE = "trainer_state.json"
"""File in a checkpoint with the number of its step."""


def is_of_group(checkpoint: Path) -> bool:
    """Whether a checkpoint was saved by a group of trials (solo.py)."""
    return bool(json.loads((checkpoint / STATE_FILE).read_text()).get("group"))


class LogWindow(TrainerCallback):
    """The open log window of a DPOTrainer, whose private attributes it reads and sets."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._resume_from: Path | None = None
        self._seconds_before, self._started = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, including those before a resume."""
        return self._seconds_before + time.monotonic() - self._started

    def go_on_from(self, checkpoint: Path | None) -> None:
        """Restore the window of a checkpoint when training begins."""
        self._resume_from = checkpoint

    def save(self, folder: Path) -> None:
        """Add the window to a checkpoint."""
        trainer = self._trainer
        window = {
            "loss": trainer._tr_loss.item(),  # exact: fp32 in a double
            "total_loss": trainer._total_loss_scalar,
            "first_step": trainer._initial_global_step,
            "last_logged_step": trainer._globalstep_last_logged,
            "metrics": read_metrics(trainer._metrics["train"]),
            "seconds": self.seconds,
        }
        (folder / WINDOW_FILE).write_text(json.dumps(window))

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self._resume_from is None:
            return
        window, trainer = json.loads((self._resume_from / WINDOW_FILE).read_text()), self._trainer
        trainer._tr_loss = torch.tensor(window["loss"], device=args.device)
        trainer._total_loss_scalar = window["total_loss"]
        trainer._initial_global_step = window["first_step"]
        trainer._globalstep_last_logged = window["last_logged_step"]
        trainer._metrics["train"].update(window["metrics"])
        self._seconds_before = window["seconds"]
