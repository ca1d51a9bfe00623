"""The table of all trials, one row a trial, the untrained policy first."""

from collections.abc import Sequence
from typing import Any

from prefsweep.orchestrator.report.families import SYMBOLS, Family
from prefsweep.orchestrator.results.frontier import Comparison, metric
from prefsweep.orchestrator.results.variants import INTERVAL_METHOD, METHOD, Pooled, Variant
from prefsweep.orchestrator.text import duration, show
from prefsweep.sweeps.grid import number
from prefsweep.sweeps.records import TrialResult

GRID_COLUMNS = {
    "beta": "beta",
    "alpha": "alpha",
    "learning_rate": "Learning rate",
    "seed": "Seed",
}
"""Field of a trial -> heading; drawn where trials differ in it."""
METRICS = {
    "reward_mean": (
        "Reward",
        f"mean score of the sampled completions [95% interval: {INTERVAL_METHOD}]",
    ),
    "reward_gain": (
        "Gain",
        "reward minus the untrained policy's, paired by prompt [95% interval]",
    ),
    "win_rate": (
        "Win rate",
        "share of held-out prompts whose reward beats the untrained policy's; a tie is half",
    ),
    "kl": (
        "KL",
        "mean over completions of the sum over positions of the full-vocabulary "
        "KL(policy || untrained), nats",
    ),
    "entropy": ("Entropy", "of the pooled unigram tokens of all completions (Shannon), nats"),
    "entropy_full": (
        "Entropy, full",
        "the same of prompt + completion with the reward model's tokenizer, nats",
    ),
    "predictive_entropy": (
        "Predictive entropy",
        "mean over generated positions of the policy's full-vocabulary entropy, nats",
    ),
    "distinct_1": ("Distinct\u20111", "unique unigrams / unigrams over all completions"),
    "distinct_2": ("Distinct\u20112", "unique bigrams / bigrams over all completions"),
    "ref_perplexity": (
        "Ref. perplexity",
        "exp of the mean per-token negative log-likelihood under the untrained policy",
    ),
    "completion_tokens": ("Tokens", "mean length of the completions"),
    "margin_test": (
        "Margin, test",
        "mean on the test pairs of beta x (chosen - rejected log-ratio)",
    ),
    "accuracy_test": ("Accuracy, test", "how often that margin is above 0"),
    "gpu_memory_gib": ("GPU memory", "peak of the training, GiB"),
}
"""Metric -> heading and definition, in the order of the table."""


def trial_table(comparison: Comparison, groups: Sequence[Family], pooled: Pooled) -> dict[str, Any]:
    """Headings and rows; columns that are empty for all are left out."""
    results = [*([comparison.untrained] if comparison.untrained else []), *comparison.trials]
    columns = {
        name: heading
        for name, heading in METRICS.items()
        if any(metric(result, name) is not None for result in results)
    }
    grid = {
        name: heading
        for name, heading in GRID_COLUMNS.items()
        if len({getattr(result.trial, name) for result in comparison.trials}) > 1
    }
    family_of = {member.trial_id: family for family in groups for member in family.members}
    variants = pooled.by_trial
    return {
        "grid": grid,
        "columns": columns,
        "rows": [
            _identity(result, family_of.get(result.trial_id))
            | {
                "marks": _marks(variants.get(result.trial_id), pooled),
                "grid": [_grid_cell(result, name) for name in grid],
                "cells": [_metric_cell(result, name) for name in columns],
                "seconds": result.train_seconds,
                "duration": duration(result.train_seconds),
            }
            for result in results
        ],
    }


def _marks(variant: Variant | None, pooled: Pooled) -> list[dict[str, str]]:
    """[{"text", "about"}] of what stands out; of all seeds of a grid point alike."""
    if variant is None or variant.reward is None:
        return []
    marks: list[dict[str, str]] = []
    if variant is pooled.best:
        marks.append({"text": "best", "about": "the highest reward, over all seeds"})
    elif variant.indistinguishable and variant.standing is not None:
        about = f"not distinguishable from the best, p = {variant.standing.p_value:.2g}; {METHOD}"
        marks.append({"text": "\u2248 best", "about": about})
    if any(variant is each for each in pooled.pareto):
        marks.append({"text": "Pareto", "about": "no other has more reward at less KL"})
    return marks


def _identity(result: TrialResult, family: Family | None) -> dict[str, Any]:
    return {
        "id": result.trial_id,
        "name": result.name,
        "status": result.status.value,
        "colour": None if family is None else family.colour,
        "path": None if family is None else SYMBOLS[family.symbol],
    }


def _grid_cell(result: TrialResult, name: str) -> dict[str, Any]:
    value = None if result.trial is None else getattr(result.trial, name)
    return {"value": value, "text": "" if value is None else number(value), "bounds": None}


def _metric_cell(result: TrialResult, name: str) -> dict[str, Any]:
    return {"value": metric(result, name), "text": show(metric(result, name))} | {
        "bounds": _bounds(result, name)
    }


def _bounds(result: TrialResult, name: str) -> str | None:
    """The 95% interval of a metric that has one, such as `reward_ci_low` of `reward_mean`."""
    stem = name.removesuffix("_mean")
    low, high = metric(result, f"{stem}_ci_low"), metric(result, f"{stem}_ci_high")
    return None if low is None or high is None else f"[{show(low)}, {show(high)}]"
