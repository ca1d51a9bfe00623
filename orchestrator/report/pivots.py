"""Loss x beta tables of reward and of entropy, for the page."""

import statistics
from collections.abc import Sequence
from typing import Any

from prefsweep.orchestrator.report.families import SYMBOLS, Family, beta_of
from prefsweep.orchestrator.report.formats import DASH, show
from prefsweep.orchestrator.report.frontier import Comparison, interval, metric
from prefsweep.sweeps.grid import number
from prefsweep.sweeps.records import Status, TrialResult

TITLES = {"reward_mean": "Reward by loss and beta", "entropy": "Entropy by loss and beta"}
"""Metric -> title of its table."""


def pivot_tables(comparison: Comparison, families: Sequence[Family]) -> list[dict[str, Any]]:
    """A table of each metric that a succeeded trial has: one row a loss, one column a beta."""
    betas = sorted({beta_of(result) for result in comparison.trials})
    return [
        {
            "title": title,
            "caption": _caption(name, comparison),
            "betas": [number(beta) for beta in betas],
            "untrained": _cell(name, [comparison.untrained] if comparison.untrained else []),
            "rows": [_row(name, family, betas) for family in families],
        }
        for name, title in TITLES.items()
        if any(metric(result, name) is not None for result in comparison.finished)
    ]


def _caption(name: str, comparison: Comparison) -> str:
    """What the cells hold."""
    seeds = {result.trial.seed for result in comparison.trials if result.trial is not None}
    over_seeds = " Means over the seeds." if len(seeds) > 1 else ""
    if name == "reward_mean":
        return f"Mean reward.{over_seeds}" if over_seeds else "Mean reward [95% interval]."
    has_full = any(metric(result, "entropy_full") is not None for result in comparison.finished)
    full = " / of prompt + completion, by the reward model's tokenizer" if has_full else ""
    return f"Of the completions, by the policy's tokenizer{full}, nats.{over_seeds}"


def _row(name: str, family: Family, betas: Sequence[float]) -> dict[str, Any]:
    return {
        "label": family.label,
        "colour": family.colour,
        "path": SYMBOLS[family.symbol],
        "cells": [
            _cell(name, [member for member in family.members if beta_of(member) == beta])
            for beta in betas
        ],
    }


def _cell(name: str, results: Sequence[TrialResult]) -> dict[str, str | None]:
    """The mean over the trials of a grid point, which differ in their seeds, and what follows it.

    A grid point without a result says why: it failed, or is still to come.
    """
    value = _mean(name, results)
    if value is None:
        unfinished = [r.status.value for r in results if r.status is not Status.SUCCEEDED]
        return {"text": unfinished[0] if unfinished else DASH, "small": None}
    return {"text": show(value), "small": _detail(name, results)}


def _detail(name: str, results: Sequence[TrialResult]) -> str | None:
    if name == "entropy":
        full = _mean("entropy_full", results)
        return None if full is None else f"/ {show(full)}"
    bounds = interval(results[0]) if len(results) == 1 else None
    return f"[{show(bounds[0])}, {show(bounds[1])}]" if bounds else None


def _mean(name: str, results: Sequence[TrialResult]) -> float | None:
    values = [metric(r, name) for r in results if r.status is Status.SUCCEEDED]
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None
