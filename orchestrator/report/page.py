"""index.html: one page with everything in it, that asks nothing of the network.

Text goes through Jinja's autoescape or, as JSON, through `embedded_json`; report.js puts it into
the page as text, never as markup. A content security policy in the page forbids all requests.
"""

import json
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from prefsweep.orchestrator.report.betas import losses_at_one_beta
from prefsweep.orchestrator.report.boxes import box_plots
from prefsweep.orchestrator.report.curves import DASHES, hidden_at_first, training_plots
from prefsweep.orchestrator.report.families import SYMBOLS, Family, families
from prefsweep.orchestrator.report.figures import Plot, comparison_plots
from prefsweep.orchestrator.report.formats import duration, show, without_terminal_codes
from prefsweep.orchestrator.report.frontier import (
    Comparison,
    compare,
    interval,
    metric,
)
from prefsweep.orchestrator.report.headline import headline
from prefsweep.orchestrator.report.pivots import pivot_tables
from prefsweep.orchestrator.report.samples import sample_data
from prefsweep.sweeps.grid import number
from prefsweep.sweeps.records import Failure, StageResult, Status, SweepResults, TrialResult

TABLE_METRICS = {
    "reward_mean": (
        "Reward",
        "mean score of the sampled completions [95% bootstrap interval over prompts]",
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
}
"""Metric -> heading and definition, in the order of the page's table."""
UNFINISHED = (Status.RUNNING, Status.PENDING, Status.INTERRUPTED)


def page_html(results: SweepResults) -> str:
    """The whole page as text."""
    comparison = compare(results)
    groups = families(comparison.trials)
    comparisons, curves = comparison_plots(comparison, groups), training_plots(groups)
    boxes, at_beta = box_plots(comparison, groups), losses_at_one_beta(comparison, groups)
    by_loss = [*([at_beta.plot] if at_beta else []), *(plot for _, plot in boxes)]
    data = {
        "figures": {plot.id: plot.figure for plot in (*comparisons, *by_loss, *curves)},
        "choices": {at_beta.plot.id: at_beta.choices} if at_beta else {},
        "samples": sample_data(comparison),
    }
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("template.html")).render(
        style=Markup(_asset("style.css")),
        script=Markup(_asset("report.js")),
        plotly=Markup(get_plotlyjs()) if data["figures"] else "",
        data=embedded_json(data),
        head=headline(results, comparison, groups),
        comparison_plots=comparisons,
        no_plots=_why_no_plots(comparison),
        boxes=[_box_panel(family, plot) for family, plot in boxes],
        at_beta=at_beta,
        pivots=pivot_tables(comparison, groups),
        training_plots=curves,
        families=[_legend(family, hidden_at_first(groups)) for family in groups],
        table=_table(comparison, groups),
        samples=data["samples"],
        failures=_failures(results),
        unfinished=_unfinished(comparison),
        stages=[_stage(stage) for stage in results.stages],
        cost=_cost(results),
        spec=json.dumps(results.spec, indent=2, ensure_ascii=False, default=str),
        environment=results.environment,
    )


def embedded_json(value: object) -> Markup:
    """Compact JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _asset(name: str) -> str:
    return (
        resources.files("prefsweep.orchestrator.report").joinpath(name).read_text(encoding="utf-8")
    )


def _why_no_plots(comparison: Comparison) -> str:
    if not comparison.finished:
        return "No trial has succeeded, so there is nothing to compare."
    return (
        "The trials were evaluated without a reward, so there are no reward plots; "
        "the table has their other metrics."
    )


# --- table ---------------------------------------------------------------------------------------


def _table(comparison: Comparison, groups: Sequence[Family]) -> dict[str, Any]:
    """Headings and rows; columns that are empty for all are left out."""
    results = [*([comparison.untrained] if comparison.untrained else []), *comparison.trials]
    columns = {
        name: heading
        for name, heading in TABLE_METRICS.items()
        if any(metric(result, name) is not None for result in results)
    }
    family_of = {member.trial_id: family for family in groups for member in family.members}
    pareto = {result.trial_id for result in comparison.pareto}
    return {
        "columns": columns,
        "rows": [
            {
                "name": result.name,
                "status": result.status.value,
                "colour": family_of[result.trial_id].colour if result.trial else None,
                "path": SYMBOLS[family_of[result.trial_id].symbol] if result.trial else None,
                "pareto": result.trial is not None and result.trial_id in pareto,
                "cells": [_metric_cell(result, name) for name in columns],
                "seconds": result.train_seconds,
                "duration": duration(result.train_seconds),
            }
            for result in results
        ],
    }


def _metric_cell(result: TrialResult, name: str) -> dict[str, Any]:
    value = metric(result, name)
    bounds = interval(result) if name == "reward_mean" else None
    return {
        "value": value,
        "text": show(value),
        "bounds": f"[{show(bounds[0])}, {show(bounds[1])}]" if bounds else None,
    }


def _box_panel(family: Family, plot: Plot) -> dict[str, Any]:
    return {"plot": plot, "colour": family.colour, "path": SYMBOLS[family.symbol]}


def _legend(family: Family, hidden: set[str]) -> dict[str, Any]:
    """A family's legend buttons; its trials with a training curve have one each."""
    trials = [
        {
            "key": f"trial:{member.trial_id}",
            "name": member.name,
            "short": short,
            "dash": dash,
            "shown": member.trial_id not in hidden,
        }
        for member, short, dash in zip(
            family.members, _short_names(family), _dash_patterns(family), strict=True
        )
        if member.history
    ]
    return {
        "key": family.key,
        "label": family.label,
        "colour": family.colour,
        "path": SYMBOLS[family.symbol],
        "trials": trials,
        "drawn": any(metric(m, "reward_mean") is not None for m in family.members),
    }


def _short_names(family: Family) -> list[str]:
    """What tells a trial from its family: its beta, and its seed where there are several."""
    trials = [member.trial for member in family.members if member.trial is not None]
    with_seed = len({trial.seed for trial in trials}) > 1
    return [number(t.beta) + (f" seed {t.seed}" if with_seed else "") for t in trials]


def _dash_patterns(family: Family) -> list[str]:
    patterns = list(DASHES.values())
    return [patterns[rank % len(patterns)] for rank in range(len(family.members))]


# --- failures, data, cost ------------------------------------------------------------------------


def _failures(results: SweepResults) -> list[dict[str, Any]]:
    """Failures with the trials they struck; the same failure of many trials is told once."""
    groups: dict[tuple[str, str, str], dict[str, Any]] = {}
    for result in results.results:
        if result.failure is None and result.status is not Status.FAILED:
            continue
        failure = result.failure or Failure("transient", "No reason was recorded.")
        told = groups.setdefault(
            (failure.kind, failure.message, failure.advice),
            {
                "names": [],
                "kind": failure.kind.replace("_", " "),
                "message": without_terminal_codes(failure.message),
                "advice": failure.advice,
                "traceback": without_terminal_codes(failure.traceback),
            },
        )
        told["names"].append(result.name)
    return list(groups.values())


def _unfinished(comparison: Comparison) -> list[dict[str, Any]]:
    """[{"status", "names"}] of the trials whose result is still to come."""
    groups = {
        status: [result.name for result in comparison.trials if result.status is status]
        for status in UNFINISHED
    }
    return [{"status": status.value, "names": names} for status, names in groups.items() if names]


def _stage(stage: StageResult) -> dict[str, Any]:
    return {
        "name": stage.name,
        "rows": f"{stage.rows:,}",
        "notes": [f"{name}: {_count(value)}" for name, value in stage.notes.items()],
        "duration": duration(stage.seconds),
        "fingerprint": stage.fingerprint,
    }


def _count(value: float) -> str:
    return f"{int(value):,}" if math.isfinite(value) and value == int(value) else show(value)


def _cost(results: SweepResults) -> list[dict[str, Any]]:
    """Bars of seconds, stages first; the length is a percentage of the longest."""
    bars = [(stage.name, stage.seconds, "stage") for stage in results.stages]
    bars += [(r.name, r.train_seconds, "trial") for r in results.results if r.train_seconds]
    longest = max((seconds for _, seconds, _ in bars), default=0.0) or 1.0
    return [
        {
            "name": name,
            "kind": kind,
            "duration": duration(seconds),
            "width": round(100 * seconds / longest, 1),
        }
        for name, seconds, kind in bars
    ]
