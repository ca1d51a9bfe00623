"""Where the time of a packed step goes, and how much of the machine's matmul rate it gets.

Self times of torch's operators over the steps of one trial (torch.profiler), by kind; what is left
of the wall clock is Python, the trainer and the optimizer's bookkeeping. The rate of the step's
matrix products is compared with that of one large product, measured beside it.
"""

import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from prefsweep.sweeps.spec import TrainingSpec
from prefsweep.workers.models import load_policy, load_tokenizer
from prefsweep.workers.reference import reference_pairs
from prefsweep.workers.train import Hooks, train
from tests.benchmarks.data import preference_pairs, write_policy
from tests.benchmarks.trial import LORA, TRIAL

WARM_UP, STEPS = 2, 8
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::addmm_"),
    "attention": ("scaled_dot_product",),
    "softmax of the head": ("log_softmax", "aten::exp_", "aten::amax", "aten::gather"),
    "elementwise and norms": (
        *("aten::gelu", "aten::mul", "aten::add", "aten::pow", "aten::tanh", "aten::sub"),
        *("aten::div", "layer_norm", "aten::sum", "aten::mean", "aten::neg", "aten::sqrt"),
    ),
    "moving values": (
        *("aten::copy_", "aten::cat", "aten::index", "aten::fill_", "aten::where"),
        *("aten::masked_fill", "aten::zero_", "aten::_to_copy"),
    ),
}
"""Kind -> beginnings (or parts) of the names of operators; the first that fits takes it."""


def run(folder: Path) -> list[dict[str, Any]]:
    """A row for one thread and one for all cores: LoRA, 12 pairs a batch, fp32."""
    cores = torch.get_num_threads()
    rows = []
    for threads in sorted({1, cores}):
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory(dir=folder) as part:
            rows.append(_profiled(Path(part), threads))
    torch.set_num_threads(cores)
    return rows


def _profiled(folder: Path, threads: int) -> dict[str, Any]:
    pairs, source = preference_pairs(num_prompts=24)
    policy = write_policy(folder / "policy", pairs)
    spec = TrainingSpec(
        max_steps=WARM_UP + STEPS + 1,
        max_length=256,
        order="by_prompt",
        logging_steps=1,
        per_device_train_batch_size=12,
        lora=LORA,
    )
    model, tokenizer = load_policy(policy), load_tokenizer(policy)
    tokenized = reference_pairs(pairs, model, tokenizer, spec)
    ends: list[float] = []
    with profile(
        activities=[ProfilerActivity.CPU],
        schedule=schedule(wait=0, warmup=WARM_UP, active=STEPS, repeat=1),
        with_flops=True,
        acc_events=True,
    ) as profiler:

        def stepped(step: int, model: Any) -> None:
            ends.append(time.perf_counter())
            profiler.step()

        train(
            TRIAL, spec, model, tokenizer, tokenized, folder / "out", Hooks(_ignore, None, stepped)
        )
    wall_s = (ends[WARM_UP + STEPS - 1] - ends[WARM_UP - 1]) / STEPS
    seconds: defaultdict[str, float] = defaultdict(float)
    flops = 0.0
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            seconds[_kind(event.key)] += event.self_cpu_time_total / 1e6 / STEPS
            flops += (event.flops or 0) / STEPS
    seconds["Python and the rest"] = wall_s - sum(seconds.values())
    rate = flops / seconds["matrix products"] / 1e9
    peak = matmul_rate()
    return {
        "benchmark": f"a packed step, profiled, threads={threads}",
        "data": source,
        "ours_s": wall_s,
        "shares": {
            kind: round(own / wall_s, 3)
            for kind, own in sorted(seconds.items(), key=lambda item: -item[1])
        },
        "GFLOP of matrix products": round(flops / 1e9, 2),
        "their GFLOP/s": round(rate, 1),
        "GFLOP/s of one large product": round(peak, 1),
        "share of that rate, whole step": round(flops / wall_s / 1e9 / peak, 3),
    }


def matmul_rate() -> float:
    """GFLOP/s of an fp32 product of 2048 x 2048 matrices: the best of five."""
    size = 2048
    a, b = torch.randn(size, size), torch.randn(size, size)
    times: list[float] = []
    for _ in range(6):
        started = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times[1:]) / 1e9


def _kind(operator: str) -> str:
    for kind, names in KINDS.items():
        if any(operator.startswith(name) or name in operator for name in names):
            return kind
    return "other operators"


def _ignore(record: dict[str, float]) -> None:
    """A trial's metrics, not wanted here."""
