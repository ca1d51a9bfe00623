"""`make bench-gpu`: groups of trials against stock TRL on one GPU; random weights, no network.

For each model: TRL's step, then steps of groups of K trials, with the trial-steps per second of
both, the peak of memory and the share of a step in which the GPU computes; attention with cuDNN's
plans and without, a row each. `--tiny` runs small models on the CPU, to prove the script.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    set_seed,
)

from prefsweep.sweeps.records import PreferencePair, TokenizedPair
from prefsweep.sweeps.spec import LoraSpec, TrainingSpec
from prefsweep.workers.fused import train_group
from prefsweep.workers.hooks import Hooks
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_policy, load_tokenizer
from prefsweep.workers.reference import reference_pairs
from tests.benchmarks.data import preference_pairs, write_policy
from tests.benchmarks.trial import mixed_trials, time_stock

OUTPUT = Path("benchmarks-gpu.json")
SIZES = {
    "124M": ("gpt2", 12, 768, 12),
    "774M": ("gpt2", 36, 1280, 20),
    "1.5B": ("llama", 22, 2048, 32),
}
TINY = {"tiny": ("gpt2", 2, 64, 2), "tiny llama": ("llama", 2, 64, 4)}
GROUPS = (1, 2, 4, 8, 18)
BATCH = 8


@dataclass(frozen=True)
class Bench:
    """A model with its pairs."""

    name: str
    policy: ModelSource
    pairs: list[PreferencePair]
    tokenized: list[TokenizedPair]
    spec: TrainingSpec


def main(*, tiny: bool) -> None:
    """Measure, print each row as it is known, and write all of them as JSON."""
    if not tiny and not torch.cuda.is_available():
        raise SystemExit("no GPU is visible; --tiny proves the script on the CPU")
    rows: list[dict[str, Any]] = []

    def tell(**row: Any) -> None:
        rows.append(row)
        print(row, flush=True)
        OUTPUT.write_text(json.dumps(rows, indent=2))

    tell(torch=torch.__version__, gpu=torch.cuda.get_device_name() if not tiny else "none")
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in (TINY if tiny else SIZES).items():
            bench = _bench(Path(folder) / name, name, shape, tiny=tiny)
            tell(model=name, what="stock TRL", **_stock(bench, Path(folder) / "stock"))
            for cudnn in (True, False):
                with _cudnn_attention(cudnn):
                    for num in GROUPS[: 2 if tiny else None]:
                        try:
                            row = _group(bench, num, Path(folder) / f"{name}-{num}-{cudnn}")
                        except Exception as error:  # a row that fails must not end the others
                            row = {"error": repr(error)[:300]}
                        tell(model=name, what="group", trials=num, cudnn_attention=cudnn, **row)
                        _free()


def _bench(folder: Path, name: str, shape: tuple[str, int, int, int], *, tiny: bool) -> Bench:
    pairs, _ = preference_pairs(num_prompts=6 if tiny else 48)
    policy = write_policy(folder, pairs)
    tokenizer = load_tokenizer(policy)
    set_seed(0)
    with torch.device("cpu" if tiny else "cuda"):
        model = _model(shape, 8192 if tiny else 50_257)
    model.save_pretrained(folder)
    del model
    is_gpt2 = shape[0] == "gpt2"
    spec = TrainingSpec(
        max_steps=8 if tiny else 24,
        max_length=256,
        order="by_prompt",
        logging_steps=10,
        per_device_train_batch_size=BATCH,
        bf16=True,
        lora=LoraSpec(
            r=8,
            lora_alpha=32,
            target_modules=("c_attn", "c_proj") if is_gpt2 else ("q_proj", "v_proj", "o_proj"),
        ),
    )
    tokenized = reference_pairs(pairs, load_policy(policy), tokenizer, spec)
    _free()
    return Bench(name, policy, pairs, tokenized, spec)


def _model(shape: tuple[str, int, int, int], vocabulary: int) -> PreTrainedModel:
    kind, layers, width, heads = shape
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                n_layer=layers, n_embd=width, n_head=heads, n_positions=1024, vocab_size=vocabulary
            )
        )
    return LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=layers,
            hidden_size=width,
            intermediate_size=3 * width,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 4),
            max_position_embeddings=1024,
            vocab_size=vocabulary,
        )
    )


def _stock(bench: Bench, folder: Path) -> dict[str, float]:
    timed = time_stock(bench.policy, bench.spec, bench.pairs, folder)
    peak = _peak_gib()
    _free()
    return {"trial_steps_per_s": 1 / timed.step_seconds, "gib": peak}


def _group(bench: Bench, num: int, folder: Path) -> dict[str, float]:
    """Median step of the second half, and what the profiler sees of the last steps but one."""
    times: list[float] = []
    total = bench.spec.max_steps or 0
    kinds = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        kinds.append(ProfilerActivity.CUDA)
    profiler = profile(activities=kinds)

    def on_step(step: int, model: Any) -> None:
        _wait()
        times.append(time.perf_counter())
        if step == total - 3:
            profiler.start()
        if step == total - 1:
            _wait()
            profiler.stop()

    trials = mixed_trials(num)
    hooks = [Hooks(_ignore, reads_model=lambda step: False) for _ in trials]
    hooks[0] = Hooks(_ignore, on_step=on_step, reads_model=lambda step: False)
    data = (load_policy(bench.policy), load_tokenizer(bench.policy), bench.tokenized)
    folders = [folder / str(number) for number in range(num)]
    outcomes = train_group(trials, bench.spec, *data, folders, hooks)
    failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if failed:
        raise failed[0]
    gaps = [after - before for before, after in pairwise(times)]
    plain = gaps[: total - 4]
    step_s = statistics.median(plain[len(plain) // 2 :])
    busy_s = sum(
        event.self_device_time_total / 2e6
        for event in profiler.key_averages()
        if str(event.device_type).endswith("CUDA")
    )
    return {
        "step_ms": 1e3 * step_s,
        "first_steps_ms": 1e3 * statistics.mean(gaps[:4]),
        "trial_steps_per_s": num / step_s,
        "busy": busy_s / step_s,
        "gib": _peak_gib(),
    }


@contextmanager
def _cudnn_attention(on: bool) -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(on)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_gib() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _ignore(record: dict[str, float]) -> None:
    """A trial's metrics, not wanted here."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small models on the CPU")
    main(tiny=parser.parse_args().tiny)
