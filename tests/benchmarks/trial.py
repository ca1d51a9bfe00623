"""One trial against stock TRL: the same pairs, order, batch size and steps, fp32, no checkpointing.

The baseline is DPOTrainer with its defaults (padded batches, the reference's forward in every
step); ours is `workers.train`, packed, with the reference's log-probabilities given.
"""

import statistics
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.records import PreferencePair, TokenizedPair
from prefsweep.sweeps.spec import LoraSpec, TrainingSpec
from prefsweep.workers.batches import PromptSampler
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_policy, load_tokenizer
from prefsweep.workers.reference import reference_pairs
from prefsweep.workers.train import Hooks, lora_config, train
from tests.benchmarks.data import preference_pairs, write_policy

TRIAL = TrialSpec(loss_type="sigmoid", beta=0.1, learning_rate=1e-4)
LORA = LoraSpec(r=8, lora_alpha=32, target_modules=("c_attn", "c_proj"))
NUM_STEPS, NUM_ROUNDS = 12, 3
SETTINGS = {
    "LoRA, 12 pairs a batch": (12, LORA),
    "full fine-tuning, 12 pairs a batch": (12, None),
    "LoRA, 8 pairs a batch": (8, LORA),
}


def run(folder: Path) -> list[dict[str, Any]]:
    """One row a setting: medians of interleaved rounds, their ratio, the largest loss gap."""
    pairs, source = preference_pairs(num_prompts=24)
    policy = write_policy(folder / "policy", pairs)
    rows = []
    for name, (batch_size, lora) in SETTINGS.items():
        spec = TrainingSpec(
            max_steps=NUM_STEPS,
            per_device_train_batch_size=batch_size,
            max_length=256,
            logging_steps=1,
            lora=lora,
        )
        tokenized = reference_pairs(pairs, load_policy(policy), load_tokenizer(policy), spec)
        ours, stock, differences = [], [], []
        for number in range(NUM_ROUNDS):
            their_seconds, theirs = time_stock(policy, spec, pairs, folder / "stock")
            our_seconds, losses = time_ours(policy, spec, tokenized, folder / f"{name}-{number}")
            ours.append(our_seconds)
            stock.append(their_seconds)
            differences += [abs(a - b) / b for a, b in zip(losses, theirs, strict=True)]
        rows.append(
            {
                "benchmark": f"one trial: {name}",
                "baseline": "TRL DPOTrainer, defaults",
                "data": source,
                "baseline_s": statistics.median(stock),
                "ours_s": statistics.median(ours),
                "ratio": statistics.median(s / o for s, o in zip(stock, ours, strict=True)),
                "largest relative loss difference": max(differences),
            }
        )
    return rows


def time_ours(
    policy: ModelSource, spec: TrainingSpec, pairs: list[TokenizedPair], folder: Path
) -> tuple[float, list[float]]:
    """Seconds of one trial, saving included, and its losses."""
    model, tokenizer, records = load_policy(policy), load_tokenizer(policy), []
    started = time.perf_counter()
    train(TRIAL, spec, model, tokenizer, pairs, folder, Hooks(report=records.append))
    return time.perf_counter() - started, [record["loss"] for record in records]


def time_stock(
    policy: ModelSource, spec: TrainingSpec, pairs: list[PreferencePair], folder: Path
) -> tuple[float, list[float]]:
    """Seconds of the same trial by stock TRL, and its losses."""
    model, tokenizer = load_policy(policy), load_tokenizer(policy)
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
        bf16=False,
        activation_checkpointing=False,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
    )
    columns = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    started = time.perf_counter()
    trainer = _StockInOurOrder(
        model=model,
        ref_model=None if spec.lora else load_policy(policy),
        args=arguments,
        train_dataset=Dataset.from_list(columns),
        processing_class=tokenizer,
        peft_config=lora_config(spec.lora, model) if spec.lora else None,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    seconds = time.perf_counter() - started
    return seconds, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class _StockInOurOrder(DPOTrainer):
    """Stock TRL on the same batches: it is given our order of rows."""

    def _get_train_sampler(self, train_dataset: Any = None) -> PromptSampler:
        assert isinstance(self.train_dataset, Dataset)
        prompts = [str(ids) for ids in self.train_dataset["prompt_ids"]]
        return PromptSampler(prompts, self.args.seed)
