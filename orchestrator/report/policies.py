"""Data on each policy for the page's scripts: name, look, numbers as text, sample completions.

Plots, table, slider and samples look it up by trial id.
"""

import math
from collections.abc import Sequence
from typing import Any

from prefsweep.orchestrator.report.style import NEUTRAL, SYMBOLS, Family, rounded
from prefsweep.orchestrator.results.analysis import Comparison, Pooled, Variant, interval, metric
from prefsweep.orchestrator.text import show, with_interval
from prefsweep.sweeps.records import EvaluationSample, TrialResult
from prefsweep.workers.statistics import Interval

UNTRAINED_PATH = "M0,-6.5L1.6,-2L6.2,-2L2.5,0.8L3.9,5.3L0,2.6L-3.9,5.3L-2.5,0.8L-6.2,-2L-1.6,-2z"
"""The star of the untrained policy, as an SVG path around (0, 0)."""
_HOVER = {
    "kl": ("KL", " nats"),
    "entropy": ("entropy", " nats"),
    "win_rate": ("win rate", ""),
}
"""Metric -> its name and unit in the tooltip of a point."""


def policy_facts(comparison: Comparison, groups: Sequence[Family]) -> list[dict[str, Any]]:
    """Facts of the untrained policy, then of all trials in grid order."""
    family_of = {member.trial_id: family for family in groups for member in family.members}
    results = [*([comparison.untrained] if comparison.untrained else []), *comparison.trials]
    return [_policy(result, family_of.get(result.trial_id)) for result in results]


def competing_facts(comparison: Comparison, pooled: Pooled) -> list[dict[str, Any]]:
    """The choices of the slider: the untrained policy at KL 0 and all grid points."""
    facts: list[dict[str, Any]] = []
    start = metric(comparison.untrained, "reward_mean")
    if comparison.untrained is not None and start is not None:
        name, lines = comparison.untrained.name, untrained_lines(comparison.untrained)
        facts.append({"ids": "", "name": name, "kl": 0.0} | _reward(start, lines))
    for variant in pooled.variants:
        kl = variant.mean("kl")
        if variant.reward is not None and kl is not None:
            point = {"ids": ids_of(variant), "name": variant.name, "kl": rounded([kl])[0]}
            facts.append(point | _reward(variant.reward, variant_lines(variant)))
    if len(facts) <= MAX_SHARES:
        _add_shares(facts, pooled)
    return facts


MAX_SHARES = 200
"""With more choices, the slider gives no shares."""


def _add_shares(facts: Sequence[dict[str, Any]], pooled: Pooled) -> None:
    """To each choice, as "within", how surely the best within its KL is the best within it."""
    by_name = {variant.name: variant for variant in pooled.variants}
    for fact in facts:
        within = [each for each in facts if each["kl"] <= fact["kl"]]
        top = max(within, key=lambda each: (each["reward"], -each["kl"]))
        own = by_name.get(fact["name"])
        budget = (own.mean("kl") if own else None) or 0.0  # not rounded, so that it holds its own
        share = pooled.share_within(by_name.get(top["name"]), budget)
        if share is not None:
            fact["within"] = share_line(share)


def share_line(share: float) -> str:
    """A detail of the best within a KL budget."""
    return f"the best within the budget in {100 * share:.0f}% of bootstrap resamples"


def ids_of(variant: Variant) -> str:
    """Ids of the finished trials of a grid point, separated by spaces."""
    return " ".join(result.trial_id for result in variant.finished)


def untrained_lines(untrained: TrialResult) -> list[str]:
    """Details of the untrained policy's reward."""
    return _interval_lines(interval(untrained), num_seeds=1)


def variant_lines(variant: Variant) -> list[str]:
    """Details of a grid point's reward: interval, KL, gain and win rate."""
    lines = _interval_lines(variant.reward_interval, variant.num_seeds)
    lines.append(f"KL {with_interval(variant.mean('kl'), variant.kl_interval)} nats")
    if variant.gain is not None:
        sign, bounds = "+" if variant.gain >= 0 else "", variant.gain_interval
        around = f" [{show(bounds[0])}, {show(bounds[1])}]" if bounds else ""
        lines.append(f"{sign}{show(variant.gain)}{around} over untrained")
    wins, bounds = variant.mean("win_rate"), variant.win_interval
    if wins is not None:
        around = f" [{100 * bounds[0]:.0f}%, {100 * bounds[1]:.0f}%]" if bounds else ""
        lines.append(f"wins {100 * wins:.0f}%{around} of the prompts")
    if variant.gain_interval is not None:
        lines.append("the last two intervals hold for all grid points at once")
    return lines


def _interval_lines(bounds: Interval | None, num_seeds: int) -> list[str]:
    over = f", {num_seeds} seeds" if num_seeds > 1 else ""
    return [f"95% interval {show(bounds[0])} to {show(bounds[1])}{over}"] if bounds else []


def _reward(reward: float, lines: list[str]) -> dict[str, Any]:
    return {"reward": rounded([reward])[0], "shown": show(reward), "details": lines}


def _policy(result: TrialResult, family: Family | None) -> dict[str, Any]:
    reward, kl = metric(result, "reward_mean"), metric(result, "kl")
    facts: dict[str, Any] = {
        "id": result.trial_id,
        "name": result.name,
        "colour": NEUTRAL if family is None else family.colour,
        "path": UNTRAINED_PATH if family is None else SYMBOLS[family.symbol],
        "hover": _hover(result),
    }
    if result.trial is None:
        facts["untrained"] = True
    if reward is not None and kl is not None:
        facts |= {"reward": rounded([reward])[0], "kl": rounded([kl])[0]}
    return facts


def _hover(result: TrialResult) -> list[str]:
    """Lines of the tooltip of a point, after the name."""
    bounds = interval(result)
    around = f" [{show(bounds[0])}, {show(bounds[1])}]" if bounds else ""
    return [
        f"reward {show(metric(result, 'reward_mean'))}{around}",
        *(f"{label} {show(metric(result, name))}{unit}" for name, (label, unit) in _HOVER.items()),
    ]


# --- sample completions ---------------------------------------------------------------------------


MAX_PROMPTS = 20
MAX_SAMPLES = 2
"""Maximum completions per prompt and policy."""
MAX_CHARACTERS = 1_500_000
"""Maximum characters of all completions; further prompts are omitted, but never the first."""


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
    # The first seed represents a grid point.
    standouts = {v.finished[0].trial_id for v in (*pooled.pareto, pooled.best) if v and v.finished}
    return {
        "policies": [_sampled_policy(result, standouts) for result in policies],
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


def _sampled_policy(result: TrialResult, standouts: set[str]) -> dict[str, Any]:
    untrained = result.trial is None
    standout = untrained or result.trial_id in standouts
    return {"id": result.trial_id, "untrained": untrained, "standout": standout}
