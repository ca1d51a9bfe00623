"""The parts of a group that belong to one trial: optimizer, schedule, log lines, checkpoints, end.

A checkpoint has the same files as that of a single trial, but its content is for a group;
`is_of_group` in window.py distinguishes them. A trial is resumed in the way it was started.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from prefsweep.workers.deferred import transferred
from prefsweep.workers.group_loss import Numbers
from prefsweep.workers.hooks import Hooks
from prefsweep.workers.lora_stack import AdapterStack
from prefsweep.workers.memory import is_out_of_memory
from prefsweep.workers.row_optim import RowOptimizer
from prefsweep.workers.trial_end import end_metrics, not_finite_at_end, not_finite_in_step
from prefsweep.workers.window import STATE_FILE, WINDOW_FILE

OPTIMIZER = "optimizer.pt"
"""File of a checkpoint with the optimizer's moments."""
UNUSED = ("scheduler.pt", "rng_state.pth")
"""Files that a checkpoint must have but that are not used: the learning rate follows from the step,
and nothing is random."""

Step = tuple[int, torch.Tensor, torch.Tensor, list[tuple[float, Numbers]]]
"""A step, its losses (K,) and gradient norms (K,), its parts' shares of the pairs and metrics."""

_Value = TypeVar("_Value")


class Solo:
    """Trial number `index` of a group. An error from its hooks only ends this trial."""

    def __init__(
        self,
        stack: AdapterStack,
        optimizer: RowOptimizer,
        index: int,
        output_dir: Path,
        hooks: Hooks,
        remedy: str,
    ) -> None:
        """`remedy` says what to change if values are not finite (precision.py)."""
        self._stack, self._index, self._hooks, self._output_dir = stack, index, hooks, output_dir
        self._work_dir = output_dir.parent / f"{output_dir.name}-work"
        self._optimizer, self._remedy = optimizer, remedy
        self._window: list[Step] = []
        self._logged: dict[str, list[float]] = {}
        """Metrics of the open window that were already read, one number per step; with "loss"."""
        self._norm = 0.0
        self._total_loss = 0.0
        self._group = stack.num
        """Size of the largest group in which any of its steps was trained."""
        self.seconds = 0.0
        """Its share of the group's seconds of training."""
        self._end: Exception | None = None

    @property
    def is_running(self) -> bool:
        """Whether the trial is still being trained."""
        return self._end is None

    def own(self, act: Callable[[], _Value]) -> _Value | None:
        """Run a step of this trial, if it is still being trained; an error only ends this trial.

        An out-of-memory error concerns the whole group and is raised.
        """
        if not self.is_running:
            return None
        try:
            return act()
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if self.check():  # otherwise an earlier value that is not finite is the reason
                self.end(error)
            return None

    def end(self, error: Exception) -> None:
        """End the trial; its row is then computed with a zero adapter."""
        self._end = error
        self._stack.clear(self._index)
        for moment_KP in self._optimizer.state:
            moment_KP[self._index] = 0
        if self._hooks.on_end is not None:
            self._hooks.on_end(error)

    def take(
        self,
        step: int,
        losses_K: torch.Tensor,
        norms_K: torch.Tensor,
        numbers: Sequence[tuple[float, Numbers]],
    ) -> None:
        """Store the numbers of a step, which are read later."""
        if self.is_running:
            own = [(share, each) for share, each in numbers if self._index in each.positions]
            self._window.append((step, losses_K, norms_K, own))

    def check(self) -> bool:
        """Check the steps since the last check; returns False if the trial has ended."""
        window, self._window = self._window, []
        if not self.is_running or not window:
            return self.is_running
        numbers = iter(self._transfer(window))
        for step, _, _, parts in window:
            loss, norm = next(numbers), next(numbers)
            for what, value in (("loss", loss), ("gradient norm", norm)):
                if not math.isfinite(value):
                    self.end(not_finite_in_step(what, value, step, self._remedy))
                    return False
            self._norm, values = norm, {"loss": loss}
            for share, each in parts:
                for name, tensors in each.tensors.items():
                    value = each.of[name](*(next(numbers) for _ in tensors))
                    values[name] = values.get(name, 0.0) + value * share
            for name, value in values.items():
                self._logged.setdefault(name, []).append(value)
        return True

    def log(self, step: int, epoch: float) -> None:
        """Report the window's line, unless the trial has ended."""
        if not self.check():
            return
        window, self._logged = self._logged, {}
        self._total_loss += sum(window["loss"])
        means = {name: sum(values) / len(values) for name, values in window.items()}
        line = {"loss": means.pop("loss"), "grad_norm": self._norm}
        line |= {
            "learning_rate": self._optimizer.rates[self._index][step - 1],
            **means,
            "epoch": epoch,
        }
        self._hooks.report({"step": float(step), **line})

    def look(self, step: int) -> None:
        """Call the trial's `on_step` hook."""
        hooks = self._hooks
        if hooks.on_step is not None:
            reads = hooks.reads_model is None or hooks.reads_model(step)
            hooks.on_step(step, self._stack.show(self._index) if reads else self._stack.shell)

    def wants_to_stop(self) -> bool:
        """Whether a stop was requested."""
        return self._hooks.should_stop is not None and self._hooks.should_stop()

    def save(self, step: int) -> None:
        """Publish a checkpoint."""
        if self._hooks.publish is None or not self.check():
            return
        folder = self._work_dir / f"checkpoint-{step}"
        self._stack.save(self._index, folder)
        moments = [moment_KP[self._index].clone() for moment_KP in self._optimizer.state]
        torch.save(moments, folder / OPTIMIZER)
        for unused in UNUSED:
            (folder / unused).touch()
        (folder / STATE_FILE).write_text(json.dumps({"global_step": step, "group": self._group}))
        window = {
            "metrics": self._logged,
            "total_loss": self._total_loss,
            "grad_norm": self._norm,
            "seconds": self.seconds,
        }
        (folder / WINDOW_FILE).write_text(json.dumps(window))
        self._hooks.publish(step, folder)

    def resume(self) -> int:
        """Resume from the checkpoint in the hooks; returns its step."""
        folder = self._hooks.resume_from
        if folder is None:
            return 0
        self._stack.load(self._index, folder)
        moments = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        for moment_KP, moment_P in zip(self._optimizer.state, moments, strict=True):
            moment_KP[self._index] = moment_P
        window = json.loads((folder / WINDOW_FILE).read_text())
        self._logged, self._total_loss = window["metrics"], window["total_loss"]
        self._norm, self.seconds = window["grad_norm"], window["seconds"]
        state = json.loads((folder / STATE_FILE).read_text())
        self._group = max(self._group, state["group"])
        return state["global_step"]

    def finish(self, num_steps: int) -> dict[str, float] | Exception:
        """Save the adapter; returns the trial's metrics, or the error that ended it."""
        if self.is_running and self.check() and not self._is_finite():
            self.end(not_finite_at_end("the adapter", self._remedy))
        self.own(lambda: self._stack.save(self._index, self._output_dir))
        if self._end is not None:
            return self._end
        total_loss = self._total_loss + sum(self._logged.get("loss", ()))
        metrics = end_metrics(self.seconds, total_loss / num_steps, num_steps)
        return metrics | ({"group": float(self._group)} if self._group > 1 else {})

    def _is_finite(self) -> bool:
        return bool(torch.isfinite(self._stack.values_KP[self._index]).all())

    def _transfer(self, window: Sequence[Step]) -> list[float]:
        """Read the loss, norm and metrics of each step in one transfer."""
        values: list[torch.Tensor] = []
        for _, losses_K, norms_K, parts in window:
            values += (losses_K[self._index], norms_K[self._index])
            for _, each in parts:
                at = each.positions.index(self._index)
                values += [t[at] for tensors in each.tensors.values() for t in tensors]
        return transferred(values)
