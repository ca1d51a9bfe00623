"""The findings of a sweep in words, for the top of the page and for summary.md."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prefsweep.orchestrator.report.claims import limits, method, significance
from prefsweep.orchestrator.report.methods import open_questions
from prefsweep.orchestrator.report.policies import (
    ids_of,
    share_line,
    untrained_lines,
    variant_lines,
)
from prefsweep.orchestrator.report.style import SYMBOLS, Family, families
from prefsweep.orchestrator.report.tables import evaluation_size, status_counts, time_spent
from prefsweep.orchestrator.results.analysis import (
    Comparison,
    Pooled,
    Variant,
    compare,
    interval,
    metric,
    pool,
)
from prefsweep.orchestrator.text import DASH, counted, inline, show, with_interval
from prefsweep.sweeps.grid import number
from prefsweep.sweeps.records import Status, SweepResults, TrialResult


def headline(
    results: SweepResults, comparison: Comparison, groups: Sequence[Family], pooled: Pooled
) -> dict[str, Any]:
    """Data for the header of the template."""
    tiles = [
        _untrained_tile(comparison.untrained),
        _tile(_best_label(pooled), pooled.best),
        _accuracy_tile(comparison, pooled),
    ]
    return {
        "sweep": results.sweep,
        "compared": _what_was_compared(results, comparison, groups),
        "tiles": [tile for tile in tiles if tile is not None],
        "within": _within(pooled),
        "pareto": _pareto(pooled, groups),
        "has_start": metric(comparison.untrained, "reward_mean") is not None,
        "caveats": _caveats(comparison, groups, pooled),
        "method": method(pooled),
        "counts": status_counts(comparison),
        "evaluation": evaluation_size(results),
        "time": time_spent(results),
    }


def _what_was_compared(
    results: SweepResults, comparison: Comparison, groups: Sequence[Family]
) -> str:
    labels = [family.label for family in groups]
    betas = sorted({member.trial.beta for f in groups for member in f.members if member.trial})
    losses = ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
    text = f"{counted(len(comparison.trials), 'trial')}: {losses or 'none yet'}"
    if betas:
        text += f"; beta {', '.join(map(number, betas)) if len(betas) <= 8 else _span(betas)}"
    for section, keys in (("policy", ("model",)), ("reward", ("model", "function", "type"))):
        name = _first(results.spec.get(section), keys)
        text += f"; {section} {name}" if name else ""
    return f"{text}."


def _span(values: Sequence[float]) -> str:
    return f"{number(values[0])} to {number(values[-1])}"


def _first(section: object, keys: Sequence[str]) -> str | None:
    """The value of the first of these keys that a section of the spec has."""
    if not isinstance(section, Mapping):
        return None
    return next((str(section[key]) for key in keys if section.get(key)), None)


def _within(pooled: Pooled) -> dict[str, Any] | None:
    """The tile with the slider in its initial position, the median KL."""
    tile = _tile("Best reward within a KL budget", pooled.best_within)
    if pooled.budget is None or tile is None:
        return None
    share = pooled.share_within(pooled.best_within, pooled.budget)
    tile["details"] += [] if share is None else [share_line(share)]
    return tile | {"budget": f"{_rounded_up(pooled.budget):g}"}


def _rounded_up(value: float) -> float:
    """Round up to three significant digits, so that the trial at the budget stays within it."""
    if value <= 0:
        return value
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / step) * step:.3g}")


def _pareto(pooled: Pooled, groups: Sequence[Family]) -> list[dict[str, str]]:
    family_of = {member.trial_id: family for family in groups for member in family.members}
    families = [family_of[variant.members[0].trial_id] for variant in pooled.pareto]
    return [
        {
            "ids": ids_of(variant),
            "name": variant.name,
            "share": "" if variant.frontier is None else f"{100 * variant.frontier:.0f}%",
            "colour": family.colour,
            "path": SYMBOLS[family.symbol],
        }
        for variant, family in zip(pooled.pareto, families, strict=True)
    ]


def _tile(label: str, variant: Variant | None) -> dict[str, Any] | None:
    """A reward as a large number with details; None without a reward."""
    if variant is None or variant.reward is None:
        return None
    name = {"label": label, "ids": ids_of(variant), "name": variant.name}
    return name | {"value": show(variant.reward), "details": variant_lines(variant)}


def _untrained_tile(untrained: TrialResult | None) -> dict[str, Any] | None:
    reward = metric(untrained, "reward_mean")
    if untrained is None or reward is None:
        return None
    name = {"label": "Reward of the untrained policy", "ids": "", "name": ""}
    return name | {"value": show(reward), "details": untrained_lines(untrained)}


def _accuracy_tile(comparison: Comparison, pooled: Pooled) -> dict[str, Any] | None:
    """Without rewards, the trial with the best accuracy on the test pairs; otherwise None."""
    able = [result for result in comparison.finished if metric(result, "accuracy_test") is not None]
    if pooled.best is not None or not able:
        return None
    best = max(able, key=lambda result: metric(result, "accuracy_test") or 0.0)
    return {
        "label": "Best accuracy on the test pairs",
        "ids": best.trial_id,
        "name": best.name,
        "value": show(metric(best, "accuracy_test")),
        "details": [f"KL {show(metric(best, 'kl'))} nats"],
    }


def _caveats(comparison: Comparison, groups: Sequence[Family], pooled: Pooled) -> list[str]:
    """Limitations of the numbers in the header."""
    lines: list[str] = []
    if comparison.untrained is None:
        lines.append("The untrained policy is not evaluated yet, so there is no baseline.")
    about = " (\u2248 best in the table)"
    lines += [f"{finding}." for finding in (*significance(pooled, about), *limits(pooled))]
    lines += [f"{question}." for question in open_questions(groups, pooled)]
    if pooled.num_seeds > 1:
        lines.append(f"Rewards are means over up to {pooled.num_seeds} seeds per grid point.")
    return lines


# --- summary.md -----------------------------------------------------------------------------------


MAX_ROWS = 30
"""Maximum grid points in the table; of more, those with the highest rewards are shown."""
MAX_NAMES = 8
"""Maximum names listed in a line."""
SUMMARY_METRICS = ("win_rate", "kl", "entropy", "distinct_2", "accuracy_test")
"""Columns after reward and gain."""


def summary_markdown(results: SweepResults, pooled: Pooled | None = None) -> str:
    """About ten lines and a table, for an issue or a chat."""
    comparison = compare(results)
    pooled = pooled or pool(comparison)
    size = evaluation_size(results)
    if pooled.best is not None and pooled.num_seeds > 1:
        size += f" x {pooled.num_seeds} seeds"
    lines = [
        *findings(comparison, pooled),
        *limits(pooled),
        *open_questions(families(comparison.trials), pooled),
        f"Trials: {status_counts(comparison)}{_still_missing(results)}",
        f"Evaluation: {'; '.join(filter(None, (size, method(pooled))))}",
        f"Time: {time_spent(results)}",
    ]
    return "\n".join(
        [
            f"# {inline(results.sweep)}",
            "",
            *(f"- {line}" for line in lines),
            "",
            *_table(comparison, pooled),
            "",
        ]
    )


def _best_label(pooled: Pooled) -> str:
    return "Best reward of a trial" if pooled.untrained_is_best else "Best reward"


def findings(comparison: Comparison, pooled: Pooled) -> list[str]:
    """The findings, one sentence per item."""
    best, within = pooled.best, pooled.best_within
    lines: list[str] = []
    if best is None:
        lines.append(_why_no_best(comparison))
    else:
        lines.append(f"{_best_label(pooled)}: {_code(best.name)}, {_standing(best)}")
        alike = [v.name for v in pooled.variants if v.indistinguishable]
        peers = alike if pooled.untrained_is_best else [v.name for v in pooled.peers]
        lines += significance(pooled, f": {_names(peers)}")
    if within is not None:
        share = pooled.share_within(within, pooled.budget or 0.0)
        lines.append(
            f"Best within a KL of {show(pooled.budget)} nats (the median): {_code(within.name)}, "
            f"reward {with_interval(within.reward, within.reward_interval)} "
            f"at KL {with_interval(within.mean('kl'), within.kl_interval)} nats"
            + ("" if share is None else f"; {share_line(share)}")
        )
    if pooled.pareto:
        known = all(v.frontier is not None for v in pooled.pareto)
        about = "; probability that it holds" if known else ""
        names = _names([_with_share(v) for v in pooled.pareto])
        lines.append(f"Pareto set (reward up, KL down{about}): {names}")
    elif best is not None:
        lines.append("Pareto set (reward up, KL down): only the untrained policy")
    lines.append(_untrained_line(comparison))
    return lines


def _standing(variant: Variant) -> str:
    """reward 1.234 [1.1, 1.4] over 3 seeds at KL 2.345 nats; +0.5 [0.3, 0.7] over untrained."""
    text = f"reward {with_interval(variant.reward, variant.reward_interval)}"
    if variant.num_seeds > 1:
        text += f" over {counted(variant.num_seeds, 'seed')}"
    kl = variant.mean("kl")
    text += "" if kl is None else f" at KL {with_interval(kl, variant.kl_interval)} nats"
    if variant.gain is not None:
        sign = "+" if variant.gain >= 0 else ""
        gain = with_interval(variant.gain, variant.gain_interval)
        text += f"; {sign}{gain} over untrained, by prompt"
    wins = variant.mean("win_rate")
    if wins is None:
        return text
    bounds = variant.win_interval
    between = "" if bounds is None else f" [{100 * bounds[0]:.0f}%, {100 * bounds[1]:.0f}%]"
    return f"{text}, better on {100 * wins:.0f}%{between} of the prompts"


def _still_missing(results: SweepResults) -> str:
    """The stages that are not finished."""
    return f"; not finished: {', '.join(results.missing)}" if results.missing else ""


def _untrained_line(comparison: Comparison) -> str:
    if comparison.untrained is None:
        return "Untrained policy: not evaluated yet"
    reward = metric(comparison.untrained, "reward_mean")
    if reward is None:
        return "Untrained policy: no reward"
    return f"Untrained policy: reward {with_interval(reward, interval(comparison.untrained))}"


def _why_no_best(comparison: Comparison) -> str:
    if not comparison.finished:
        return "Best reward: no trial has succeeded"
    return "Best reward: none, the trials were evaluated without a reward"


# --- the table -----------------------------------------------------------------------------------


def _table(comparison: Comparison, pooled: Pooled) -> Sequence[str]:
    """The untrained policy and the grid points, in grid order; of many, the best ones by reward."""
    shown, left_out = pooled.variants, max(0, len(pooled.variants) - MAX_ROWS)
    if left_out:
        shown = sorted(shown, key=lambda v: -1e300 if v.reward is None else v.reward)[-MAX_ROWS:]
        shown.reverse()
    seeds = ["seeds"] if pooled.num_seeds > 1 else []
    head = ["trial", "status", *seeds, "reward_mean", "reward_gain", *SUMMARY_METRICS, "best?"]
    rows = [] if comparison.untrained is None else [_untrained_cells(comparison.untrained, pooled)]
    rows += [_cells(variant, pooled) for variant in shown]
    lines = [
        f"| {' | '.join(head)} |",
        f"|---|---|{'---:|' * (len(head) - 3)}---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    if left_out:
        lines += ["", f"{left_out} more with lower rewards or no reward are in trials.csv."]
    return lines


def _untrained_cells(untrained: TrialResult, pooled: Pooled) -> list[str]:
    reward = with_interval(metric(untrained, "reward_mean"), interval(untrained))
    numbers = [show(metric(untrained, name)) for name in SUMMARY_METRICS]
    mark = "~" if pooled.untrained and not pooled.untrained.distinguishable else ""
    mark = "best" if pooled.untrained_is_best else mark
    seeds = [DASH] if pooled.num_seeds > 1 else []
    status = untrained.status.value
    return [_code(untrained.name), status, *seeds, reward, DASH, *numbers, mark]


def _cells(variant: Variant, pooled: Pooled) -> list[str]:
    statuses = dict.fromkeys(member.status for member in variant.members)
    status = Status.SUCCEEDED if variant.finished else next(iter(statuses))
    seeds = [f"{variant.num_seeds}/{len(variant.members)}"] if pooled.num_seeds > 1 else []
    numbers = [show(variant.mean(name)) for name in SUMMARY_METRICS]
    reward = with_interval(variant.reward, variant.reward_interval)
    gain = with_interval(variant.gain, variant.gain_interval)
    mark = "~" if variant.indistinguishable else ""
    if variant is pooled.best:
        mark = f"best trial {mark}".rstrip() if pooled.untrained_is_best else "best"
    return [_code(variant.name), status.value, *seeds, reward, gain, *numbers, mark]


def _with_share(variant: Variant) -> str:
    """The name, with its probability of being on the frontier."""
    return variant.name if variant.frontier is None else f"{variant.name} {variant.frontier:.2f}"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(map(_code, names[:MAX_NAMES])) + more


def _code(name: str) -> str:
    return f"`{inline(name)}`"
