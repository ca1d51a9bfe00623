"""trials.csv and summary.md: results in, text out."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import cast

from prefsweep.orchestrator.report.formats import DASH, counted, duration, one_line, show
from prefsweep.orchestrator.report.frontier import (
    Comparison,
    compare,
    interval,
    intervals_overlap,
    metric,
)
from prefsweep.sweeps.records import Status, SweepResults, TrialResult

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
COLUMNS = (
    *("trial_id", "name", "status"),
    *TRIAL_COLUMNS,
    *METRIC_COLUMNS,
    *("train_seconds", "error"),
)
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
_SUMMARY_METRICS = ("reward_mean", "win_rate", "kl", "entropy", "distinct_2", "accuracy_test")


def trials_csv(results: SweepResults) -> str:
    """One row per policy, the untrained one first (pending where it is not evaluated yet)."""
    comparison = compare(results)
    untrained = comparison.untrained or TrialResult("untrained", "untrained", None, Status.PENDING)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for result in (untrained, *comparison.trials):
        writer.writerow(_csv_row(result))
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
    ]


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


# --- summary.md ----------------------------------------------------------------------------------


def summary_markdown(results: SweepResults) -> str:
    """A dozen lines and a table, to paste into an issue or a chat."""
    comparison = compare(results)
    lines = [f"- {line}" for line in findings(comparison)]
    lines += [
        f"- Trials: {status_counts(comparison)}",
        f"- Evaluation: {evaluation_size(results)}",
        f"- Time: {time_spent(results)}",
    ]
    return "\n".join(
        [f"# {_inline(results.sweep)}", "", *lines, "", *_summary_table(comparison), ""]
    )


def findings(comparison: Comparison) -> list[str]:
    """What the sweep found, one sentence an item; also the head of the page."""
    best, within = comparison.best, comparison.best_within
    lines: list[str] = []
    if best is not None:
        lines.append(f"Best reward: {_code(best)}, {_standing(best)}{_caveat(comparison)}")
    if within is not None and comparison.budget is not None:
        lines.append(
            f"Best within a KL of {show(comparison.budget)} nats (median of the trials): "
            f"{_code(within)}, {_standing(within)}"
        )
    if comparison.pareto:
        names = ", ".join(map(_code, comparison.pareto))
        lines.append(f"Pareto set (reward up, KL down): {names}")
    elif best is not None:
        lines.append("Pareto set (reward up, KL down): only the untrained policy")
    lines.append(_untrained_line(comparison))
    if best is None:
        lines.insert(0, _why_no_best(comparison))
    return lines


def _standing(result: TrialResult) -> str:
    """reward 1.234 [1.1, 1.4] at KL 2.345."""
    text = f"reward {show(metric(result, 'reward_mean'))}"
    bounds = interval(result)
    if bounds is not None:
        text += f" [{show(bounds[0])}, {show(bounds[1])}]"
    kl = metric(result, "kl")
    return text if kl is None else f"{text} at KL {show(kl)} nats"


def _caveat(comparison: Comparison) -> str:
    """Say so where the intervals do not tell the best from others."""
    best = comparison.best
    if intervals_overlap(best, comparison.untrained):
        return "; its 95% interval overlaps the untrained policy's"
    rivals = [
        result
        for result in comparison.finished
        if result is not best and intervals_overlap(best, result)
    ]
    return f"; the 95% intervals of {counted(len(rivals), 'other')} overlap it" if rivals else ""


def _untrained_line(comparison: Comparison) -> str:
    if comparison.untrained is None:
        return "Untrained policy: not evaluated yet"
    if metric(comparison.untrained, "reward_mean") is None:
        return "Untrained policy: no reward"
    bounds = interval(comparison.untrained)
    text = f"Untrained policy: reward {show(metric(comparison.untrained, 'reward_mean'))}"
    return text if bounds is None else f"{text} [{show(bounds[0])}, {show(bounds[1])}]"


def _why_no_best(comparison: Comparison) -> str:
    if not comparison.finished:
        return "Best reward: no trial has succeeded"
    return "Best reward: none, the trials were evaluated without a reward"


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


def _summary_table(comparison: Comparison) -> Sequence[str]:
    head = ["trial", "status", *_SUMMARY_METRICS]
    rows = [*([comparison.untrained] if comparison.untrained else []), *comparison.trials]
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * 2}{'---:|' * len(_SUMMARY_METRICS)}",
        *(f"| {' | '.join(_summary_cells(result))} |" for result in rows),
    ]


def _summary_cells(result: TrialResult) -> list[str]:
    values = [show(metric(result, name)) for name in _SUMMARY_METRICS]
    if interval(result) is not None:
        low, high = interval(result) or (None, None)
        values[0] += f" [{show(low)}, {show(high)}]"
    return [_code(result), result.status.value, *values]


def _code(result: TrialResult) -> str:
    return f"`{_inline(result.name)}`"


def _inline(text: str) -> str:
    """Text that cannot end a table cell, a code span or a line."""
    return (
        one_line(text)
        .replace("`", "'")
        .replace("|", "/")
        .replace("<", "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}")
        or DASH
    )
