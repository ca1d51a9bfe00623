"""Measures the memory of a trial and the speed of groups of trials, in a few steps on the largest
batches.

`orchestrator/execution/sizing.py` computes shares of a GPU and sizes of groups from the results.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prefsweep.sweeps.errors import OutOfMemory, TrialError
from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.records import TokenizedPair
from prefsweep.sweeps.spec import TrainingSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STEPS = 2
"""Steps of a trial; the optimizer only has its state after the first one."""
GROUP_STEPS, TIMED_STEPS = 6, 3
"""Steps of a group, and how many of the last ones are timed: the first steps allocate memory and
select kernels."""
WORTH = 1.1
"""Minimum speed-up, in trial-steps per second, to choose a larger group."""


@dataclass(frozen=True)
class GpuMemory:
    """The memory that a probe measured on its GPU, in bytes."""

    peak: int
    """Peak memory of the trial's process, including CUDA's own."""
    free: int
    """Free memory before the probe; other processes may use the GPU."""
    total: int


def probe_gpu(
    trial: TrialSpec,
    spec: TrainingSpec,
    load: "Callable[[], PreTrainedModel]",
    tokenizer: "PreTrainedTokenizerBase",
    pairs: Sequence[TokenizedPair],
    folder: Path,
) -> GpuMemory:
    """Train the model from `load` on this process's GPU for two steps on the longest pairs.

    The trainer writes to `folder`. If the model or its training does not fit, the peak is the total
    memory of the GPU.
    """
    import torch

    from prefsweep.workers.memory import is_out_of_memory
    from prefsweep.workers.train import Hooks, train

    free, total = gpu_room()
    torch.cuda.reset_peak_memory_stats()
    short = spec.model_copy(update={"max_steps": STEPS, "save_steps": None, "logging_steps": 1})
    largest = largest_batches(pairs, spec, STEPS)
    hooks = Hooks(lambda record: None)
    try:
        train(trial, short, load(), tokenizer, largest, folder / "weights", hooks)
    except TrialError:  # the loss is not finite; the memory of the steps is the same
        pass
    except (OutOfMemory, RuntimeError, MemoryError) as error:
        if not isinstance(error, OutOfMemory) and not is_out_of_memory(error):
            raise
        return GpuMemory(total, free, total)
    left, _ = torch.cuda.mem_get_info()
    context = max(0, free - left - torch.cuda.memory_reserved())
    return GpuMemory(torch.cuda.max_memory_reserved() + context, free, total)


@dataclass(frozen=True)
class GroupStep:
    """The measurement of a group of `size` trials on a GPU."""

    size: int
    seconds: float
    """Seconds per step with the largest batch."""
    peak: int
    """Peak memory of the process, bytes."""

    @property
    def pace(self) -> float:
        """Trial-steps per second."""
        return self.size / self.seconds


def probe_groups(
    trials: Sequence[TrialSpec],
    spec: TrainingSpec,
    load: "Callable[[], PreTrainedModel]",
    tokenizer: "PreTrainedTokenizerBase",
    pairs: Sequence[TokenizedPair],
    folder: Path,
) -> list[GroupStep]:
    """Train groups of 1, 2, 4, ... and all trials, each for a few steps on the longest pairs.

    Ends at the first size that does not fit, or is not faster than the previous one (WORTH). Empty
    if the model cannot be trained in groups.
    """
    from prefsweep.workers.fused import UnfusableError
    from prefsweep.workers.memory import is_out_of_memory, release_memory

    largest = largest_batches(pairs, spec, GROUP_STEPS)
    found: list[GroupStep] = []
    for size in _sizes(len(trials)):
        output = folder / str(size)
        try:
            step = _group_step(trials[:size], spec, load(), tokenizer, largest, output)
        except UnfusableError:
            return []
        except (OutOfMemory, RuntimeError, MemoryError) as error:
            if not isinstance(error, OutOfMemory) and not is_out_of_memory(error):
                raise
            break
        found.append(step)
        release_memory()
        if len(found) > 1 and step.pace < WORTH * found[-2].pace:
            break
    return found


def _sizes(num: int) -> list[int]:
    """1, 2, 4, ... below `num`, then `num`."""
    return [2**power for power in range(num.bit_length()) if 2**power < num] + [num]


def _group_step(
    trials: Sequence[TrialSpec],
    spec: TrainingSpec,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    pairs: Sequence[TokenizedPair],
    folder: Path,
) -> GroupStep:
    import torch

    from prefsweep.workers.fused import train_group
    from prefsweep.workers.train import Hooks

    update = {"max_steps": GROUP_STEPS, "save_steps": None, "logging_steps": GROUP_STEPS}
    short, ended_s = spec.model_copy(update=update), list[float]()

    def on_step(step: int, model: object) -> None:
        torch.cuda.synchronize()
        ended_s.append(time.monotonic())

    plain = Hooks(lambda record: None, reads_model=lambda step: False)
    hooks = [replace(plain, on_step=on_step), *[plain] * (len(trials) - 1)]
    folders = [folder / str(index) for index in range(len(trials))]
    torch.cuda.reset_peak_memory_stats()
    train_group(trials, short, model, tokenizer, pairs, folders, hooks)
    timed = ended_s[-1 - TIMED_STEPS :]
    seconds = (timed[-1] - timed[0]) / (len(timed) - 1)
    return GroupStep(len(trials), seconds, torch.cuda.max_memory_reserved())


def gpu_room() -> tuple[int, int]:
    """Free and total memory of this process's GPU, bytes; memory of other processes is not free."""
    import torch

    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()


def largest_batches(
    pairs: Sequence[TokenizedPair], spec: TrainingSpec, num: int
) -> list[TokenizedPair]:
    """The training pairs of the prompts with the longest pairs, enough for `num` batches.

    If pairs are shuffled, one pair of each prompt comes first, because these share no tokens.
    """
    from prefsweep.workers.batches import batch_size

    by_prompt: dict[str, list[TokenizedPair]] = {}
    for pair in pairs:
        if pair.split == "train":
            by_prompt.setdefault(pair.prompt_id, []).append(pair)

    def longest(mine: list[TokenizedPair]) -> int:
        return max(len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in mine)

    prompts = sorted(by_prompt.values(), key=longest, reverse=True)
    wanted = num * batch_size(spec)
    if spec.prompts_per_batch is not None:
        return [pair for mine in prompts[:wanted] for pair in mine]
    if spec.order == "shuffled":
        turns = itertools.zip_longest(*prompts)
        return [pair for turn in turns for pair in turn if pair is not None][:wanted]
    return [pair for mine in prompts for pair in mine][:wanted]
