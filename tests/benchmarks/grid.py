"""A six-trial grid against what a user would write: Ray Tune whose trainable calls stock TRL.

Both sides are a command in a process of its own, timed from start to end, start-up included. The
baseline (`python -m tests.benchmarks.grid`) loads model and pairs in each trial and trains with
DPOTrainer's defaults. Ours is `prefsweep run` on the same pairs as a file, with a reference stage,
an evaluation of every trial (on two short completions) and the report, which the baseline lacks.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.data import preference_pairs, write_policy

LOSSES, BETAS = ("sigmoid", "hinge"), (0.1, 0.5, 1.0)
NUM_PROMPTS, NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 48, 48, 12, 1e-4
MAX_LENGTH, NUM_ROUNDS = 256, 3
"""As in the benchmark of one trial: next to no completion is cut."""
LORA = {"r": 8, "lora_alpha": 32, "target_modules": ["c_attn", "c_proj"]}


def run(folder: Path) -> list[dict[str, Any]]:
    """One row: medians of interleaved rounds and their ratio. Both sides run a trial a core."""
    pairs, source = preference_pairs(num_prompts=NUM_PROMPTS)
    policy = write_policy(folder / "policy", pairs)
    columns = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in columns))
    spec = folder / "grid.yaml"
    spec.write_text(yaml.safe_dump(sweep(policy.path, str(data))))
    stock: list[tuple[float, dict[str, float]]] = []
    ours: list[tuple[float, dict[str, float]]] = []
    for number in range(NUM_ROUNDS):
        stock.append(_stock(folder, policy.path, data))
        ours.append(_ours(folder, spec, folder / f"store-{number}"))
    seconds = [own[0] for own in ours]
    return [
        {
            "benchmark": f"{len(LOSSES) * len(BETAS)} trials of {NUM_STEPS} steps, wall clock",
            "baseline": f"Ray Tune + TRL, {os.cpu_count()} at once",
            "data": source,
            "baseline_s": statistics.median(time for time, _ in stock),
            "ours_s": statistics.median(seconds),
            "ratio": statistics.median(
                theirs / own for (theirs, _), own in zip(stock, seconds, strict=True)
            ),
            "losses of the baseline": stock[0][1],
            "our losses": ours[0][1],
        }
    ]


def sweep(policy: str, data: str) -> dict[str, Any]:
    """The same grid as a sweep that enters with the pairs."""
    return {
        "name": "grid",
        "policy": {"model": policy},
        "entry": {"stage": "pairs", "path": data},
        "pairs": {"test_fraction": 0.02},
        "training": {
            "max_steps": NUM_STEPS,
            "per_device_train_batch_size": BATCH_SIZE,
            "max_length": MAX_LENGTH,
            "lora": LORA,
        },
        "grid": [{"loss_type": list(LOSSES), "beta": list(BETAS), "learning_rate": LEARNING_RATE}],
        "evaluation": {"max_prompts": 2, "max_new_tokens": 8},
        "tracking": {"wandb": {"mode": "disabled"}},
    }


def _stock(folder: Path, policy: str, data: Path) -> tuple[float, dict[str, float]]:
    output = folder / "stock.json"
    arguments = [policy, str(data), str(output)]
    seconds = _timed([sys.executable, "-m", "tests.benchmarks.grid", *arguments])
    return seconds, json.loads(output.read_text())


def _ours(folder: Path, spec: Path, storage: Path) -> tuple[float, dict[str, float]]:
    command = str(Path(sys.executable).with_name("prefsweep"))
    seconds = _timed([command, "run", str(spec), "--storage", str(storage)])
    losses: dict[str, float] = {}
    for trial in (storage / "trials").iterdir():
        if (trial / "trial.json").is_file():
            name = json.loads((trial / "status.json").read_text())["name"]
            losses[name] = _last_loss(trial / "metrics.jsonl")
    return seconds, dict(sorted(losses.items()))


def _last_loss(path: Path) -> float:
    return json.loads(path.read_text().splitlines()[-1])["loss"]


def _timed(command: list[str]) -> float:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    started = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


# --- the baseline, as a script -------------------------------------------------------------------


def stock_grid(policy: str, data: str, output: str) -> None:
    """The grid by Ray Tune and stock TRL; writes the last loss of each trial."""
    from ray import tune

    def trainable(config: dict[str, Any]) -> dict[str, float]:
        import torch
        from datasets import load_dataset
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer

        torch.set_num_threads(1)
        arguments = DPOConfig(
            output_dir=f"{output}-trainer",
            loss_type=config["loss_type"],
            beta=config["beta"],
            learning_rate=LEARNING_RATE,
            max_steps=NUM_STEPS,
            per_device_train_batch_size=BATCH_SIZE,
            max_length=MAX_LENGTH,
            logging_steps=10,
            save_strategy="no",
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(policy),
            args=arguments,
            train_dataset=load_dataset("json", data_files=data, split="train"),
            processing_class=AutoTokenizer.from_pretrained(policy),
            peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM", fan_in_fan_out=True),
        )
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return {"loss": losses[-1]}

    tuner = tune.Tuner(
        tune.with_resources(trainable, {"CPU": 1}),
        param_space={
            "loss_type": tune.grid_search(list(LOSSES)),
            "beta": tune.grid_search(list(BETAS)),
        },
    )
    results = [result for result in tuner.fit() if result.config and result.metrics]
    losses = {
        f"{result.config['loss_type']}-beta{result.config['beta']:g}": result.metrics["loss"]  # pyright: ignore
        for result in results
    }
    Path(output).write_text(json.dumps(dict(sorted(losses.items()))))


if __name__ == "__main__":
    stock_grid(*sys.argv[1:])
