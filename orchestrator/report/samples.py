"""The completions that the page shows side by side: of the first held-out prompts, not the best."""

import math
from collections.abc import Sequence
from typing import Any

from prefsweep.orchestrator.results.frontier import Comparison
from prefsweep.orchestrator.results.variants import Pooled
from prefsweep.sweeps.records import EvaluationSample, TrialResult

MAX_PROMPTS = 20
MAX_SAMPLES = 2
"""Completions a prompt and policy."""
MAX_CHARACTERS = 1_500_000
"""Of all completions together; prompts are left out beyond it, but never the first one."""


def sample_data(comparison: Comparison, pooled: Pooled) -> dict[str, Any]:
    """{"policies": [...], "prompts": [{"text", "rows": [[policy, text, reward, kl, cut], ...]}],
    "num_prompts": all held-out ones}; policies with the untrained one first.
    """
    policies = [
        result
        for result in (comparison.untrained, *comparison.trials)
        if result is not None and result.samples
    ]
    prompts = {sample.prompt_id: sample.prompt for p in policies[:1] for sample in p.samples}
    by_policy = [_by_prompt(result.samples) for result in policies]
    shown: list[dict[str, Any]] = []
    num_characters = 0
    for prompt_id, prompt in list(prompts.items())[:MAX_PROMPTS]:
        rows = [
            _row(index, sample)
            for index, samples in enumerate(by_policy)
            for sample in samples.get(prompt_id, [])[:MAX_SAMPLES]
        ]
        num_characters += sum(len(row[1]) for row in rows)
        if shown and num_characters > MAX_CHARACTERS:
            break
        shown.append({"text": prompt, "rows": rows})
    # Of a grid point with several seeds the first one stands for all.
    standouts = {v.finished[0].trial_id for v in (*pooled.pareto, pooled.best) if v and v.finished}
    return {
        "policies": [_policy(result, standouts) for result in policies],
        "prompts": shown,
        "num_prompts": len(prompts),
    }


def _by_prompt(samples: Sequence[EvaluationSample]) -> dict[str, list[EvaluationSample]]:
    groups: dict[str, list[EvaluationSample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.sample_idx):
        groups.setdefault(sample.prompt_id, []).append(sample)
    return groups


def _row(index: int, sample: EvaluationSample) -> list[Any]:
    cut = sample.finish_reason == "length"
    return [index, sample.text, _rounded(sample.reward), _rounded(sample.kl), cut]


def _rounded(value: float | None) -> float | None:
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def _policy(result: TrialResult, standouts: set[str]) -> dict[str, Any]:
    untrained = result.trial is None
    standout = untrained or result.trial_id in standouts
    return {"id": result.trial_id, "untrained": untrained, "standout": standout}
