"""How many operators a training step launches: what bounds a step on a GPU, counted on the CPU.

torch.profiler over steps 5 to 8, without a log step among them, of a GPT-2 with 12 layers of width
64: LoRA, bf16 autocast, 8 pairs a batch. Counted are ATen operators, nested ones too; reads of
scalars and `nonzero`, each of which waits for a GPU; and casts.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from prefsweep.sweeps.spec import TrainingSpec
from prefsweep.workers.fused import train_group
from prefsweep.workers.hooks import Hooks
from prefsweep.workers.models import load_policy, load_tokenizer
from prefsweep.workers.reference import reference_pairs
from prefsweep.workers.train import train
from tests.benchmarks.data import preference_pairs, write_policy
from tests.benchmarks.trial import LORA, mixed_trials

FIRST, LAST = 5, 8
BEFORE = 15_374
"""Operators of a step of one trial by TRL's trainer (2026-11-29, torch 2.13.0)."""


def run(folder: Path) -> list[dict[str, Any]]:
    """A row for a trial alone and one for a group of 8 (two losses, 8 betas and learning rates)."""
    pairs, source = preference_pairs(num_prompts=24)
    policy = write_policy(folder / "policy", pairs)
    config = GPT2Config.from_pretrained(policy.path)
    config.n_layer, config.n_embd, config.n_head = 12, 64, 4
    set_seed(0)
    GPT2LMHeadModel(config).save_pretrained(policy.path)
    spec = TrainingSpec(
        max_steps=LAST + 1,
        max_length=256,
        order="by_prompt",
        logging_steps=LAST + 1,
        lora=LORA,
        bf16=True,
    )
    tokenizer = load_tokenizer(policy)
    tokenized = reference_pairs(pairs, load_policy(policy), tokenizer, spec)
    rows: list[dict[str, Any]] = []
    for num in (1, 8):
        profiler = profile(activities=[ProfilerActivity.CPU])

        def on_step(step: int, model: Any, profiler: Any = profiler) -> None:
            if step == FIRST - 1:
                profiler.start()
            if step == LAST:
                profiler.stop()

        quiet = Hooks(_ignore, reads_model=lambda step: False)
        hooks = [Hooks(_ignore, on_step=on_step, reads_model=lambda step: False)]
        hooks += [quiet] * (num - 1)
        trials = mixed_trials(num)
        data = (load_policy(policy), tokenizer, tokenized)
        folders = [folder / f"{num}-{number}" for number in range(num)]
        if num == 1:
            train(trials[0], spec, *data, folders[0], hooks[0])
        else:
            train_group(trials, spec, *data, folders, hooks)
        rows.append(_row(num, profiler, source))
    rows[1]["ratio"] = rows[1]["operators a step"] / rows[0]["operators a step"]
    return rows


def _row(num: int, profiler: Any, source: str) -> dict[str, Any]:
    counts = Counter(
        {
            event.key: event.count / (LAST - FIRST + 1)
            for event in profiler.key_averages()
            if event.key.startswith("aten::")
        }
    )
    return {
        "benchmark": f"launches of a step, {num} trial{'s' if num > 1 else ''}",
        "data": source,
        "operators a step": round(counts.total()),
        "before": BEFORE,
        "scalar reads": counts["aten::_local_scalar_dense"],
        "nonzero": counts["aten::nonzero"],
        "casts": counts["aten::_to_copy"],
    }


def _ignore(record: dict[str, float]) -> None:
    """A trial's metrics, not wanted here."""
