"""Candidate generation against one prompt at a time: six sampled completions of each prompt.

The baseline is a loop over prompts that calls `model.generate(num_return_sequences=6)`, as the
scripts that prefsweep replaces did; ours is `workers.generate`. Model, prompts, sampling and
precision are the same; random numbers are not, so the numbers of tokens are printed.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from prefsweep.sweeps.records import Prompt
from prefsweep.sweeps.spec import GenerationSpec
from prefsweep.workers.generate import Generator
from prefsweep.workers.models import load_policy, load_tokenizer
from tests.benchmarks.data import preference_pairs, write_policy

NUM_PROMPTS, NUM_SAMPLES, NUM_ROUNDS = 32, 6, 3
SETTINGS = {
    "128 tokens": GenerationSpec(max_new_tokens=128, top_k=50, batch_size=16),
    "32 tokens": GenerationSpec(max_new_tokens=32, top_k=50, batch_size=16),
}


def run(folder: Path) -> list[dict[str, Any]]:
    """One row a setting: medians of interleaved rounds and their ratio."""
    pairs, source = preference_pairs(num_prompts=NUM_PROMPTS)
    policy = write_policy(folder / "policy", pairs)
    model, tokenizer = load_policy(policy), load_tokenizer(policy)
    prompts = [Prompt(p.prompt_id, p.prompt) for p in {p.prompt_id: p for p in pairs}.values()]
    return [
        _compare(name, spec, model, tokenizer, prompts) | {"data": source}
        for name, spec in SETTINGS.items()
    ]


def _compare(
    name: str, spec: GenerationSpec, model: Any, tokenizer: Any, prompts: list[Prompt]
) -> dict[str, Any]:
    stock: list[tuple[float, int]] = []
    ours: list[tuple[float, int]] = []
    for _ in range(NUM_ROUNDS):
        stock.append(_one_prompt_at_a_time(spec, model, tokenizer, prompts))
        started = time.perf_counter()
        samples = Generator(model, tokenizer, spec).sample(prompts, NUM_SAMPLES)
        seconds = time.perf_counter() - started
        ours.append((seconds, sum(len(sample.completion_ids) for sample in samples)))
    return {
        "benchmark": f"generation: {len(prompts)} prompts x {NUM_SAMPLES} samples, {name}",
        "baseline": "model.generate, one prompt at a time",
        "baseline_s": statistics.median(seconds for seconds, _ in stock),
        "ours_s": statistics.median(seconds for seconds, _ in ours),
        "ratio": statistics.median(s / o for (s, _), (o, _) in zip(stock, ours, strict=True)),
        "tokens of the baseline": stock[0][1],
        "our tokens": ours[0][1],
    }


def _one_prompt_at_a_time(
    spec: GenerationSpec, model: Any, tokenizer: Any, prompts: list[Prompt]
) -> tuple[float, int]:
    """Seconds, and tokens up to and with the end of text."""
    torch.manual_seed(0)
    started, num_tokens = time.perf_counter(), 0
    for prompt in prompts:
        inputs = tokenizer(prompt.text, return_tensors="pt")
        rows = model.generate(
            **inputs,
            do_sample=True,
            temperature=spec.temperature,
            top_k=spec.top_k,
            top_p=spec.top_p,
            max_new_tokens=spec.max_new_tokens,
            num_return_sequences=NUM_SAMPLES,
            pad_token_id=tokenizer.pad_token_id,
        )
        for row in rows[:, inputs["input_ids"].shape[1] :].tolist():
            tokenizer.decode(row, skip_special_tokens=True)
            end = tokenizer.eos_token_id
            num_tokens += row.index(end) + 1 if end in row else len(row)
    return time.perf_counter() - started, num_tokens
