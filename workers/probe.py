"""How much memory a trial takes: two steps on its largest batch in, the peak in bytes out.

Two, because an optimizer has its state only after the first. Knows nothing of clusters; shares of
a GPU are made of it in `orchestrator/execution/placement.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefsweep.sweeps.errors import OutOfMemory, TrialError
from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.records import TokenizedPair
from prefsweep.sweeps.spec import TrainingSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STEPS = 2


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


def gpu_room() -> tuple[int, int]:
    """Bytes free on the GPU of this process, and all it has; what others hold is not free."""
    import torch

    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()


def largest_batches(
    pairs: Sequence[TokenizedPair], spec: TrainingSpec, num: int
) -> list[TokenizedPair]:
    """The training pairs of the prompts with the longest pairs, enough for `num` batches."""
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
    return [pair for mine in prompts for pair in mine][:wanted]
