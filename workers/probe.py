"""How much memory a trial takes, and how fast groups of trials are: a few steps on the largest
batches in, peaks in bytes and seconds a step out.

Knows nothing of clusters; shares of a GPU and sizes of groups are made of it in
`orchestrator/execution/sizing.py`.
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
"""Of a trial: an optimizer has its state only after the first."""
GROUP_STEPS, TIMED_STEPS = 6, 3
"""Of a group, and the last of them that are timed: in the first ones memory is taken and kernels
are chosen."""
WORTH = 1.1
"""A larger group has to train this much more trial-steps a second."""


@dataclass(frozen=True)
class GpuMemory:
    """What a probe found on its GPU, in bytes."""

    peak: int
    """Most that the trial held at once, with what CUDA itself needs in its process."""
    free: int
    """Free before the probe: less than the card has where others are on it."""
    total: int


def probe_gpu(
    trial: TrialSpec,
    spec: TrainingSpec,
    load: "Callable[[], PreTrainedModel]",
    tokenizer: "PreTrainedTokenizerBase",
    pairs: Sequence[TokenizedPair],
    folder: Path,
) -> GpuMemory:
    """Train what `load` puts on this process's GPU for two steps on the longest pairs.

    `folder` is for what the trainer writes. Where the model or its training does not fit at all,
    the peak is the whole card.
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
    except TrialError:  # the numbers diverge; what its steps took is the same
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
    """What a probe found for a group of `size` trials on its GPU."""

    size: int
    seconds: float
    """Of a step, with its largest batch."""
    peak: int
    """Most bytes that its process held at once."""

    @property
    def pace(self) -> float:
        """Trial-steps a second."""
        return self.size / self.seconds


def probe_groups(
    trials: Sequence[TrialSpec],
    spec: TrainingSpec,
    load: "Callable[[], PreTrainedModel]",
    tokenizer: "PreTrainedTokenizerBase",
    pairs: Sequence[TokenizedPair],
    folder: Path,
) -> list[GroupStep]:
    """Train 1, 2, 4, ... and all of the trials as one, each for a few steps on the longest pairs.

    Ends with the first size that does not fit, or does not pay (WORTH) over the one before. Empty
    where the model cannot be trained so at all.
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
    """Bytes free on the GPU of this process, and all it has; what others hold is not free."""
    import torch

    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()


def largest_batches(
    pairs: Sequence[TokenizedPair], spec: TrainingSpec, num: int
) -> list[TokenizedPair]:
    """The training pairs of the prompts with the longest pairs, enough for `num` batches.

    Where pairs are shuffled, one of each prompt comes before another of any: they share nothing.
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
