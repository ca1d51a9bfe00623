"""One trial against stock TRL: the same pairs, order, batch size and steps, no checkpointing.

The baseline is DPOTrainer with its defaults (padded batches, the reference's forward in every
step); ours is `workers.train`, packed, with the reference's log-probabilities given. Seconds are
those of a step; both in fp32 but where a setting says bf16.
"""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.records import PreferencePair, TokenizedPair
from prefsweep.sweeps.spec import LoraSpec, TrainingSpec
from prefsweep.workers.batches import RowSampler
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_policy, load_tokenizer
from prefsweep.workers.reference import reference_pairs
from prefsweep.workers.train import Hooks, lora_config, train
from tests.benchmarks.data import preference_pairs, write_policy

TRIAL = TrialSpec(loss_type="sigmoid", beta=0.1, learning_rate=1e-4)
LORA = LoraSpec(r=8, lora_alpha=32, target_modules=("c_attn", "c_proj"))
NUM_STEPS, NUM_ROUNDS = 12, 3
SETTINGS = {
    "LoRA, 12 pairs a batch": {"per_device_train_batch_size": 12, "lora": LORA},
    "full fine-tuning, 12 pairs a batch": {"per_device_train_batch_size": 12},
    "LoRA, 8 pairs a batch": {"per_device_train_batch_size": 8, "lora": LORA},
    "LoRA, 12 pairs a batch, bf16": {
        "per_device_train_batch_size": 12,
        "lora": LORA,
        "bf16": True,
    },
}
"""Two prompts are 12 pairs; with 8 a prompt's pairs straddle two batches."""


def mixed_trials(num: int) -> list[TrialSpec]:
    """Trials of two losses, each with a beta and a learning rate of its own."""
    return [
        TRIAL.model_copy(
            update={
                "loss_type": ("sigmoid", "hinge")[number % 2],
                "beta": 0.05 * (number + 1),
                "learning_rate": 1e-4 / (number + 1),
            }
        )
        for number in range(num)
    ]


@dataclass(frozen=True)
class Timed:
    """One run of a trial."""

    seconds: float
    """From the pairs to the saved weights (stock: the trained model)."""
    step_seconds: float
    """Mean of all steps but the first."""
    records: list[dict[str, float]]
    """A line of metrics a step."""


def run(folder: Path) -> list[dict[str, Any]]:
    """One row a setting: medians of interleaved rounds, their ratio, the largest gaps."""
    pairs, source = preference_pairs(num_prompts=24)
    policy = write_policy(folder / "policy", pairs)
    return [
        _compare(name, settings, pairs, policy, folder) | {"data": source}
        for name, settings in SETTINGS.items()
    ]


def _compare(
    name: str,
    settings: dict[str, Any],
    pairs: list[PreferencePair],
    policy: ModelSource,
    folder: Path,
) -> dict[str, Any]:
    spec = TrainingSpec(
        max_steps=NUM_STEPS, max_length=256, logging_steps=1, order="by_prompt", **settings
    )
    tokenized = reference_pairs(pairs, load_policy(policy), load_tokenizer(policy), spec)
    ours: list[Timed] = []
    stock: list[Timed] = []
    for number in range(NUM_ROUNDS):
        stock.append(time_stock(policy, spec, pairs, folder / "stock"))
        ours.append(time_ours(policy, spec, tokenized, folder / f"{name}-{number}"))
    both = list(zip(stock, ours, strict=True))

    def gap(key: str, steps: slice) -> float:
        return max(
            abs(a[key] - b[key]) / abs(a[key])
            for theirs, own in both
            for a, b in zip(theirs.records[steps], own.records[steps], strict=True)
        )

    return {
        "benchmark": f"one trial: {name}",
        "baseline": "TRL DPOTrainer, defaults",
        "baseline_s": statistics.median(run.step_seconds for run in stock),
        "ours_s": statistics.median(run.step_seconds for run in ours),
        "ratio": statistics.median(t.step_seconds / o.step_seconds for t, o in both),
        "ratio of the whole trial": statistics.median(t.seconds / o.seconds for t, o in both),
        "largest relative loss difference": gap("loss", slice(None)),
        "relative gradient norm difference, first step": gap("grad_norm", slice(1)),
        "losses of the baseline": [record["loss"] for record in stock[0].records],
        "our losses": [record["loss"] for record in ours[0].records],
    }


def time_ours(
    policy: ModelSource, spec: TrainingSpec, pairs: list[TokenizedPair], folder: Path
) -> Timed:
    """One trial of ours, saving included."""
    model, tokenizer = load_policy(policy), load_tokenizer(policy)
    records: list[dict[str, float]] = []
    times: list[float] = []
    hooks = Hooks(
        records.append,
        on_step=lambda step, model: times.append(time.perf_counter()),
        reads_model=lambda step: False,
    )
    started = time.perf_counter()
    train(TRIAL, spec, model, tokenizer, pairs, folder, hooks)
    return Timed(time.perf_counter() - started, _mean_step(times), records)


def time_stock(
    policy: ModelSource, spec: TrainingSpec, pairs: list[PreferencePair], folder: Path
) -> Timed:
    """The same trial by stock TRL and transformers."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy.path), load_tokenizer(policy)
    arguments = DPOConfig(
        output_dir=str(folder),
        learning_rate=TRIAL.learning_rate,
        beta=TRIAL.beta,
        max_steps=spec.max_steps or -1,
        per_device_train_batch_size=spec.per_device_train_batch_size,
        lr_scheduler_type=spec.lr_scheduler_type,
        max_length=spec.max_length,
        seed=TRIAL.seed,
        logging_steps=1,
        save_strategy="no",
        bf16=spec.bf16,
        use_cpu=not torch.cuda.is_available(),  # else bf16 is refused
        activation_checkpointing=False,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
    )
    columns = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    steps = _StepTimes()
    started = time.perf_counter()
    trainer = _StockInOurOrder(
        model=model,
        ref_model=None if spec.lora else AutoModelForCausalLM.from_pretrained(policy.path),
        args=arguments,
        train_dataset=Dataset.from_list(columns),
        processing_class=tokenizer,
        peft_config=lora_config(spec.lora, model) if spec.lora else None,
        callbacks=[steps],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    seconds = time.perf_counter() - started
    records = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Timed(seconds, _mean_step(steps.times), records)


def _mean_step(times: list[float]) -> float:
    return (times[-1] - times[0]) / (len(times) - 1)


class _StepTimes(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())


class _StockInOurOrder(DPOTrainer):
    """Stock TRL on the same batches: it is given our order of rows."""

    def _get_train_sampler(self, train_dataset: Any = None) -> RowSampler:
        assert isinstance(self.train_dataset, Dataset)
        prompts = [str(ids) for ids in self.train_dataset["prompt_ids"]]
        return RowSampler(prompts, self.args.seed)
