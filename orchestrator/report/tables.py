"""Makes trials.csv, and the table of all trials on the page."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

from prefsweep.orchestrator.report.claims import scope
from prefsweep.orchestrator.report.style import SYMBOLS, Family
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
    section,
)
from prefsweep.orchestrator.text import counted, duration, one_line, show
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
NEW_COLUMNS = (
    *("sample_win_rate", "sample_win_rate_ci_low", "sample_win_rate_ci_high"),
    *("distinct_1_per_200", "distinct_2_per_200"),
)
"""Metrics at the end of a row, so that earlier columns keep their place."""
COLUMNS = (
    *("trial_id", "name", "status"),
    *TRIAL_COLUMNS,
    *METRIC_COLUMNS,
    *("train_seconds", "error"),
    *PAIRED_COLUMNS,
    *("grid_point", "grid_point_seeds", "grid_point_reward"),
    *("grid_point_ci_low", "grid_point_ci_high"),
    *("p_versus_best", "indistinguishable_from_best"),
    *("grid_point_gain", "grid_point_gain_ci_low", "grid_point_gain_ci_high"),
    *("grid_point_win_rate", "grid_point_win_rate_ci_low", "grid_point_win_rate_ci_high"),
    *("grid_point_kl", "grid_point_kl_ci_low", "grid_point_kl_ci_high", "frontier_probability"),
    *NEW_COLUMNS,
)
"""`p_versus_best` and the next compare the grid point with the best policy, which may be the
untrained one (results/analysis.py). The intervals of a grid point's gain and win rate are
simultaneous; those of a trial's (`reward_gain_ci_low`) are its own."""
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
        row = [*_csv_row(result), *_grid_point(variant), *_against_best(standing)]
        more = [_csv_cell(result.metrics.get(column)) for column in NEW_COLUMNS]
        writer.writerow([*row, *_against_untrained(variant), *more])
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


def _against_untrained(variant: Variant | None) -> list[str]:
    """Cells of a grid point's gain, win rate and KL with intervals, and of the frontier."""
    if variant is None:
        return [""] * 10
    cells = (
        *(variant.gain, *(variant.gain_interval or (None, None))),
        *(variant.mean("win_rate"), *(variant.win_interval or (None, None))),
        *(variant.mean("kl"), *(variant.kl_interval or (None, None))),
        variant.frontier,
    )
    return [_csv_cell(cell) for cell in cells]


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
    configured = section(results.spec, "evaluation").get("num_samples")
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
FRONTIER = "frontier_probability"
METRICS = {
    "reward_mean": (
        "Reward",
        f"mean score of the sampled completions [95% interval: {INTERVAL_METHOD}]",
    ),
    "reward_gain": (
        "Gain",
        "reward minus the untrained policy's, paired by prompt [95% interval, simultaneous for all "
        "grid points]",
    ),
    "win_rate": (
        "Win rate",
        "share of held-out prompts whose reward beats the untrained policy's; a tie is half "
        "[95% interval, simultaneous for all grid points]",
    ),
    "kl": (
        "KL",
        "mean over completions of the sum over positions of the full-vocabulary "
        "KL(policy || untrained), nats, of the distributions at temperature 1, before top-k, top-p "
        "and bans [95% interval]",
    ),
    "sample_win_rate": (
        "Win rate, sample",
        "chance that one sample beats one of the untrained policy's for the same prompt; does not "
        "depend on the number of samples [95% interval]",
    ),
    FRONTIER: (
        "Frontier",
        "probability of being on the reward-KL frontier: the share of paired bootstrap resamples "
        "of prompts (and seeds, if several) in which nothing has more reward at less KL",
    ),
    "entropy": ("Entropy", "of the pooled unigram tokens of all completions (Shannon), nats"),
    "entropy_full": (
        "Entropy, full",
        "the same for prompt + completion with the reward model's tokenizer, nats",
    ),
    "predictive_entropy": (
        "Predictive entropy",
        "mean over generated positions of the policy's full-vocabulary entropy at temperature 1, "
        "nats",
    ),
    "distinct_1": ("Distinct\u20111", "unique unigrams / unigrams over all completions"),
    "distinct_2": ("Distinct\u20112", "unique bigrams / bigrams over all completions"),
    "distinct_1_per_200": (
        "Distinct\u20111 of 200",
        "unique unigrams among 200 consecutive ones, mean over such blocks; does not depend on how "
        "much was sampled",
    ),
    "distinct_2_per_200": ("Distinct\u20112 of 200", "the same for bigrams"),
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
_OF_GRID_POINT = {
    "reward_gain": "gain_interval",
    "win_rate": "win_interval",
    "kl": "kl_interval",
}
"""Metric -> the field of a grid point with its interval."""


def trial_table(comparison: Comparison, groups: Sequence[Family], pooled: Pooled) -> dict[str, Any]:
    """Headings and rows; empty columns are omitted."""
    results = [*([comparison.untrained] if comparison.untrained else []), *comparison.trials]
    columns = {
        name: heading
        for name, heading in METRICS.items()
        if any(metric(result, name) is not None for result in results)
        or (name == FRONTIER and any(v.frontier is not None for v in pooled.variants))
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
                "marks": _marks(variants.get(result.trial_id), pooled)
                or _untrained_marks(result, pooled),
                "grid": [_grid_cell(result, name) for name in grid],
                "cells": [
                    _metric_cell(result, name, variants.get(result.trial_id)) for name in columns
                ],
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
    to = "the untrained policy, which is the best" if pooled.untrained_is_best else "the best"
    if variant is pooled.best:
        text = "best trial" if pooled.untrained_is_best else "best"
        marks.append({"text": text, "about": "highest mean reward of a trial, over all seeds"})
    if (
        variant.indistinguishable
        and variant.standing is not None
        and not (variant is pooled.best and not pooled.untrained_is_best)
    ):
        p_value = f"p = {variant.standing.p_value:.2g}"
        about = f"{scope(pooled)}: not significantly different from {to}, {p_value}; {METHOD}"
        marks.append({"text": "\u2248 best", "about": about})
    if any(variant is each for each in pooled.pareto):
        about = "no other grid point has a higher reward at a lower KL, as measured"
        if variant.frontier is not None:
            about += f"; probability {variant.frontier:.2f}"
        marks.append({"text": "Pareto", "about": about})
    return marks


def _untrained_marks(result: TrialResult, pooled: Pooled) -> list[dict[str, str]]:
    if result.trial is not None or not pooled.untrained_is_best:
        return []
    return [{"text": "best", "about": "no trial has a higher mean reward"}]


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


def _metric_cell(result: TrialResult, name: str, variant: Variant | None) -> dict[str, Any]:
    if name == FRONTIER:
        value = None if variant is None else variant.frontier
    else:
        value = metric(result, name)
    text = show(value) if name != FRONTIER or value is None else f"{value:.2f}"
    return {"value": value, "text": text, "bounds": _bounds(result, name, variant)}


def _bounds(result: TrialResult, name: str, variant: Variant | None) -> str | None:
    """The 95% interval of a metric that has one.

    Those of a gain, win rate or KL are of the grid point, and are left out beside a single seed of
    several.
    """
    if name in _OF_GRID_POINT:
        alone = variant is not None and len(variant.members) == 1
        ends = getattr(variant, _OF_GRID_POINT[name]) if alone else None
    else:
        ends = interval(result, name.removesuffix("_mean"))
    return f"[{show(ends[0])}, {show(ends[1])}]" if ends else None
