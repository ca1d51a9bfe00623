"""trials.csv: results in, text out; and the counts that the page and summary.md have in common."""

import csv
import io
from collections import Counter
from collections.abc import Mapping
from typing import cast

from prefsweep.orchestrator.results.frontier import Comparison, compare
from prefsweep.orchestrator.results.variants import Pooled, Variant, pool
from prefsweep.orchestrator.text import counted, duration, one_line
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
"""The last two compare the grid point with the best one, as report/variants.py says."""
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def trials_csv(results: SweepResults, pooled: Pooled | None = None) -> str:
    """One row per policy, the untrained one first (pending where it is not evaluated yet)."""
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
        *(_cell(None if trial is None else getattr(trial, column)) for column in TRIAL_COLUMNS),
        *(_cell(result.metrics.get(column)) for column in METRIC_COLUMNS),
        _cell(result.train_seconds),
        _safe(error),
        *(_cell(result.metrics.get(column)) for column in PAIRED_COLUMNS),
    ]


def _grid_point(variant: Variant | None) -> list[str]:
    """The numbers of a trial's grid point, over all its seeds."""
    if variant is None:
        return [""] * 5
    low, high = variant.reward_interval or (None, None)
    return [
        _safe(variant.name),
        str(variant.num_seeds),
        *(_cell(value) for value in (variant.reward, low, high)),
    ]


def _against_best(standing: Standing | None) -> list[str]:
    if standing is None:
        return ["", ""]
    return [_cell(standing.p_value), "no" if standing.distinguishable else "yes"]


def _cell(value: float | str | None) -> str:
    """Exact: the shortest text that reads back as the same float; empty for None."""
    if value is None:
        return ""
    if isinstance(value, str):
        return _safe(value)
    return str(value) if isinstance(value, int) else repr(float(value))


def _safe(text: str) -> str:
    """A quote in front of what a spreadsheet would run as a formula."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def status_counts(comparison: Comparison) -> str:
    """10 succeeded, 1 failed, 1 not run (of 12); running and interrupted ones only if there are."""
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
    """Seconds summed over workers, which is more than the time on the clock."""
    stages = sum(stage.seconds for stage in results.stages)
    training = sum(result.train_seconds or 0.0 for result in results.results)
    return f"{duration(stages)} in the stages before training, {duration(training)} in training"
