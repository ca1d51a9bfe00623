"""Results in, tables out: trials.csv, the page's table of all trials, and loss x beta tables."""

import csv
import io
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

from prefsweep.orchestrator.report.style import SYMBOLS, Family, beta_of
from prefsweep.orchestrator.results.analysis import (
    INTERVAL_METHOD,
    METHOD,
    Comparison,
    Pooled,
    Variant,
    compare,
    interval,
    metric,
    pool,
)
from prefsweep.orchestrator.text import DASH, counted, duration, one_line, show
from prefsweep.sweeps.grid import number
from prefsweep.sweeps.records import Status, SweepResults, TrialResult
from prefsweep.workers.comparisons import Standing

METRIC_COLUMNS = (
    "reward_mean",
    "reward_std",
    "reward_ci_low",
    "reward_ci_high",
    "win_rate",
    "win_rate_ci_low",
    "win_rate_ci_high",
    "entropy",
    "entropy_full",
    "predictive_entropy",
    "kl",
    "distinct_1",
    "distinct_2",
    "ref_perplexity",
    "completion_tokens",
    "margin_test",
    "accuracy_test",
)
"""Every metric of the evaluation, in the order of the table."""
TRIAL_COLUMNS = ("loss_type", "f_divergence_type", "alpha", "beta", "learning_rate", "seed")
PAIRED_COLUMNS = (
    *("reward_gain", "reward_gain_ci_low", "reward_gain_ci_high"),
    *("num_prompts", "num_completions"),
)
COLUMNS = (
    *("trial_id", "name", "status"),
    *TRIAL_COLUMNS,
    *METRIC_COLUMNS,
    *("train_seconds", "error"),
    *PAIRED_COLUMNS,
    *("grid_point", "grid_point_seeds", "grid_point_reward"),
    *("grid_point_ci_low", "grid_point_ci_high"),
    *("p_versus_best", "indistinguishable_from_best"),
)
"""The last two compare the grid point with the best one (results/analysis.py)."""
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def trials_csv(results: SweepResults, pooled: Pooled | None = None) -> str:
    """The text of trials.csv: one row per policy, the untrained one first, even if pending."""
    comparison = compare(results)
    pooled = pooled or pool(comparison)
    variants = pooled.by_trial
    untrained = comparison.untrained or TrialResult("untrained", "untrained", None, Status.PENDING)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for result in (untrained, *comparison.trials):
        variant = variants.get(result.trial_id)
        standing = pooled.untrained if result.trial is None else variant and variant.standing
        writer.writerow([*_csv_row(result), *_grid_point(variant), *_against_best(standing)])
    return text.getvalue()


def _csv_row(result: TrialResult) -> list[str]:
    trial = result.trial
    error = "" if result.failure is None else one_line(result.failure.message)
    return [
        "untrained" if trial is None else _safe(result.trial_id),
        _safe(result.name),
        result.status.value,
        *(_csv_cell(None if trial is None else getattr(trial, column)) for column in TRIAL_COLUMNS),
        *(_csv_cell(result.metrics.get(column)) for column in METRIC_COLUMNS),
        _csv_cell(result.train_seconds),
        _safe(error),
        *(_csv_cell(result.metrics.get(column)) for column in PAIRED_COLUMNS),
    ]


def _grid_point(variant: Variant | None) -> list[str]:
    """Cells of a trial's grid point, over all its seeds."""
    if variant is None:
        return [""] * 5
    low, high = variant.reward_interval or (None, None)
    return [
        _safe(variant.name),
        str(variant.num_seeds),
        *(_csv_cell(value) for value in (variant.reward, low, high)),
    ]


def _against_best(standing: Standing | None) -> list[str]:
    if standing is None:
        return ["", ""]
    return [_csv_cell(standing.p_value), "no" if standing.distinguishable else "yes"]


def _csv_cell(value: float | str | None) -> str:
    """The shortest text that parses to the same float; empty for None."""
    if value is None:
        return ""
    if isinstance(value, str):
        return _safe(value)
    return str(value) if isinstance(value, int) else repr(float(value))


def _safe(text: str) -> str:
    """Prefix text that a spreadsheet would run as a formula with a quote."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def status_counts(comparison: Comparison) -> str:
    """10 succeeded, 1 failed, 1 not run (of 12); running and interrupted if not 0."""
    counts = Counter(result.status for result in comparison.trials)
    parts = [f"{counts[Status.SUCCEEDED]} succeeded", f"{counts[Status.FAILED]} failed"]
    parts += [
        f"{counts[status]} {status.value}"
        for status in (Status.RUNNING, Status.INTERRUPTED)
        if counts[status]
    ]
    return f"{', '.join(parts)}, {counts[Status.PENDING]} not run (of {len(comparison.trials)})"


def evaluation_size(results: SweepResults) -> str:
    """60 held-out prompts x 2 samples."""
    rows = next((stage.rows for stage in results.stages if stage.name == "eval_prompts"), None)
    samples = next((result.samples for result in results.results if result.samples), [])
    num_prompts = rows or len({sample.prompt_id for sample in samples})
    section = results.spec.get("evaluation")
    configured = (
        cast("Mapping[str, object]", section).get("num_samples")
        if isinstance(section, Mapping)
        else None
    )
    num_samples = (
        configured
        if isinstance(configured, int)
        else len({sample.sample_idx for sample in samples})
    )
    if not num_prompts or not num_samples:
        return "nothing evaluated yet"
    return f"{counted(num_prompts, 'held-out prompt')} x {counted(num_samples, 'sample')}"


def time_spent(results: SweepResults) -> str:
    """Time summed over workers, which may exceed elapsed time."""
    stages = sum(stage.seconds for stage in results.stages)
    training = sum(result.train_seconds or 0.0 for result in results.results)
    return f"{duration(stages)} in the stages before training, {duration(training)} in training"


# --- the table of all trials ----------------------------------------------------------------------


GRID_COLUMNS = {
    "beta": "beta",
    "alpha": "alpha",
    "learning_rate": "Learning rate",
    "seed": "Seed",
}
"""Field of a trial -> heading; shown if trials differ in it."""
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
        "the same for prompt + completion with the reward model's tokenizer, nats",
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
    "accuracy_test": ("Accuracy, test", "share of test pairs with a margin above 0"),
    "gpu_memory_gib": ("GPU memory", "peak of the training, GiB"),
}
"""Metric -> heading and definition, in table order."""


def trial_table(comparison: Comparison, groups: Sequence[Family], pooled: Pooled) -> dict[str, Any]:
    """Headings and rows; empty columns are omitted."""
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
    """[{"text", "about"}], the same for all seeds of a grid point."""
    if variant is None or variant.reward is None:
        return []
    marks: list[dict[str, str]] = []
    if variant is pooled.best:
        marks.append({"text": "best", "about": "highest mean reward over all seeds"})
    elif variant.indistinguishable and variant.standing is not None:
        p_value = f"p = {variant.standing.p_value:.2g}"
        about = f"not significantly different from the best, {p_value}; {METHOD}"
        marks.append({"text": "\u2248 best", "about": about})
    if any(variant is each for each in pooled.pareto):
        marks.append(
            {"text": "Pareto", "about": "no other grid point has a higher reward at a lower KL"}
        )
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


# --- loss x beta ----------------------------------------------------------------------------------


TITLES = {"reward_mean": "Reward by loss and beta", "entropy": "Entropy by loss and beta"}
"""Metric -> title of its table."""
Bounds = Mapping[str, tuple[float, float] | None]
"""trial_id -> the interval of its grid point's mean reward over all seeds."""


def pivot_tables(
    comparison: Comparison, families: Sequence[Family], pooled: Pooled
) -> list[dict[str, Any]]:
    """One table per metric that a trial has: a row per loss, a column per beta."""
    betas = sorted({beta_of(result) for result in comparison.trials})
    bounds = {trial_id: v.reward_interval for trial_id, v in pooled.by_trial.items()}
    if comparison.untrained is not None:
        bounds[comparison.untrained.trial_id] = interval(comparison.untrained)
    return [
        {
            "title": title,
            "caption": _pivot_caption(name, comparison),
            "betas": [number(beta) for beta in betas],
            "untrained": _pivot_cell(
                name, [comparison.untrained] if comparison.untrained else [], bounds
            ),
            "rows": [_pivot_row(name, family, betas, bounds) for family in families],
        }
        for name, title in TITLES.items()
        if any(metric(result, name) is not None for result in comparison.finished)
    ]


def _pivot_caption(name: str, comparison: Comparison) -> str:
    """Explains the cells."""
    seeds = {result.trial.seed for result in comparison.trials if result.trial is not None}
    over_seeds = " Means over the seeds." if len(seeds) > 1 else ""
    if name == "reward_mean":
        return f"Mean reward [95% interval].{over_seeds}"
    has_full = any(metric(result, "entropy_full") is not None for result in comparison.finished)
    full = " / of prompt + completion, by the reward model's tokenizer" if has_full else ""
    return f"Of the completions, by the policy's tokenizer{full}, nats.{over_seeds}"


def _pivot_row(name: str, family: Family, betas: Sequence[float], bounds: Bounds) -> dict[str, Any]:
    return {
        "label": family.label,
        "colour": family.colour,
        "path": SYMBOLS[family.symbol],
        "cells": [
            _pivot_cell(
                name, [member for member in family.members if beta_of(member) == beta], bounds
            )
            for beta in betas
        ],
    }


def _pivot_cell(name: str, results: Sequence[TrialResult], bounds: Bounds) -> dict[str, str | None]:
    """The mean over the seeds of a grid point, with its interval.

    Without a result, the status of the grid point.
    """
    value = _mean(name, results)
    if value is None:
        unfinished = [r.status.value for r in results if r.status is not Status.SUCCEEDED]
        return {"text": unfinished[0] if unfinished else DASH, "small": None}
    return {"text": show(value), "small": _pivot_detail(name, results, bounds)}


def _pivot_detail(name: str, results: Sequence[TrialResult], bounds: Bounds) -> str | None:
    if name == "entropy":
        full = _mean("entropy_full", results)
        return None if full is None else f"/ {show(full)}"
    ends = bounds.get(results[0].trial_id)
    return f"[{show(ends[0])}, {show(ends[1])}]" if ends else None


def _mean(name: str, results: Sequence[TrialResult]) -> float | None:
    values = [metric(r, name) for r in results if r.status is Status.SUCCEEDED]
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None
