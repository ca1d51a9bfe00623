"""The interface between a training and its caller: metrics, checkpoints and stop requests.

The functions are passed in, so that training does not depend on the caller.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

Report = Callable[[dict[str, float]], None]
"""Receives one line of metrics, with its "step"."""
Publish = Callable[[int, Path], None]
"""Receives a step and the folder of a complete checkpoint, which it may move."""
SAVE_INTERVAL_S, SAVE_SHARE = 600.0, 0.05
"""save_steps: auto saves at this interval, or less often if saving took a larger share of time."""


@dataclass(frozen=True)
class Hooks:
    """A trial's callbacks and inputs from its caller. All run in the training process."""

    report: Report
    publish: Publish | None = None
    on_step: Callable[[int, PreTrainedModel | PeftModel], None] | None = None
    resume_from: Path | None = None
    """Folder of a checkpoint to continue from."""
    should_stop: Callable[[], bool] | None = None
    """Called after every step; if true, a checkpoint is published and training ends early."""
    reads_model: Callable[[int], bool] | None = None
    """Whether `on_step` of a step reads the model; None: always. A trial in a group is given its
    own model only then."""
    on_end: Callable[[Exception], None] | None = None
    """Called in a group with the error that ended this trial; the other trials continue."""
    halvings: int = 0
    """How often to halve the tokens of a forward pass, because they did not fit the memory. The
    batch is unchanged: it is split, and each part is weighted by its share of the pairs."""


def checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """The folder in which the trainer writes the checkpoint of its current step."""
    assert args.output_dir is not None
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


class SaveClock:
    """Decides when a checkpoint is due: every `save_steps`, never (None), or by time (auto)."""

    def __init__(self, save_steps: int | Literal["auto"] | None) -> None:
        self._save_steps = save_steps
        self._began_s = self._saved_s = time.monotonic()
        self._saving_s = 0.0
        """Start, end and duration of the last checkpoint."""

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after this step."""
        if isinstance(self._save_steps, int):
            return step % self._save_steps == 0
        interval_s = max(SAVE_INTERVAL_S, self._saving_s / SAVE_SHARE)
        return self._save_steps == "auto" and time.monotonic() - self._saved_s >= interval_s

    def begin(self) -> None:
        """Called before a checkpoint is saved."""
        self._began_s = time.monotonic()

    def saved(self) -> None:
        """Called after a checkpoint is published."""
        self._saved_s = time.monotonic()
        self._saving_s = self._saved_s - self._began_s


class HooksCallback(TrainerCallback):
    """Forwards the trainer's events to the trial's hooks, and decides when to save."""

    def __init__(self, hooks: Hooks, save_steps: int | Literal["auto"] | None) -> None:
        self._hooks, self._clock = hooks, SaveClock(save_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and "loss" in logs:
            numbers = {key: float(value) for key, value in logs.items()}
            if not math.isfinite(numbers.get("grad_norm", 0.0)):  # fp16 has skipped the step
                del numbers["grad_norm"]
            self._hooks.report({"step": float(state.global_step), **numbers})

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        hooks = self._hooks
        if hooks.on_step is not None:
            hooks.on_step(state.global_step, kwargs["model"])
        if state.global_step >= state.max_steps:
            return  # the final weights are saved next
        if hooks.should_stop is not None and hooks.should_stop():
            control.should_training_stop = True
        if hooks.publish is not None:
            control.should_save = control.should_training_stop or self._clock.is_due(
                state.global_step
            )
        self._clock.begin()

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self._hooks.publish is not None:
            self._hooks.publish(state.global_step, checkpoint_folder(args, state))
        self._clock.saved()
