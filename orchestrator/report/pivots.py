"""Loss x beta tables of the page: a row per loss, a column per beta."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from prefsweep.orchestrator.report.style import SYMBOLS, Family, beta_of
from prefsweep.orchestrator.results.analysis import Comparison, Pooled, interval, metric
from prefsweep.orchestrator.text import DASH, show
from prefsweep.sweeps.grid import number
from prefsweep.sweeps.records import Status, TrialResult

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
