"""summary.md: what the page says, in ten lines and a table to paste.

Numbers are those of grid points: with several seeds they are pooled (variants.py).
"""

from collections.abc import Sequence

from prefsweep.orchestrator.report.tables import evaluation_size, status_counts, time_spent
from prefsweep.orchestrator.results.frontier import Comparison, compare, interval, metric
from prefsweep.orchestrator.results.variants import (
    INTERVAL_METHOD,
    METHOD,
    Pooled,
    Variant,
    pool,
)
from prefsweep.orchestrator.text import DASH, counted, inline, show
from prefsweep.sweeps.records import Status, SweepResults, TrialResult
from prefsweep.workers.statistics import Interval

MAX_ROWS = 30
"""Grid points in the table; of more, those with the highest rewards."""
MAX_NAMES = 8
"""Names written out in a line."""
METRICS = ("win_rate", "kl", "entropy", "distinct_2", "accuracy_test")
"""Columns after the reward and the gain."""


def summary_markdown(results: SweepResults, pooled: Pooled | None = None) -> str:
    """Ten lines and a table, to paste into an issue or a chat."""
    comparison = compare(results)
    pooled = pooled or pool(comparison)
    lines = [
        *findings(comparison, pooled),
        f"Trials: {status_counts(comparison)}{_still_missing(results)}",
        f"Evaluation: {evaluation_size(results)}{_method(pooled)}",
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


def findings(comparison: Comparison, pooled: Pooled) -> list[str]:
    """What the sweep found, one sentence an item."""
    best, within = pooled.best, pooled.best_within
    lines: list[str] = []
    if best is None:
        lines.append(_why_no_best(comparison))
    else:
        lines.append(f"Best reward: {_code(best.name)}, {_standing(best)}")
        lines += _told_apart(pooled)
    if within is not None:
        lines.append(
            f"Best within a KL of {show(pooled.budget)} nats (the median): {_code(within.name)}, "
            f"reward {_number(within.reward, within.reward_interval)} "
            f"at KL {show(within.mean('kl'))} nats"
        )
    if pooled.pareto:
        lines.append(f"Pareto set (reward up, KL down): {_names([v.name for v in pooled.pareto])}")
    elif best is not None:
        lines.append("Pareto set (reward up, KL down): only the untrained policy")
    lines.append(_untrained_line(comparison))
    return lines


def _standing(variant: Variant) -> str:
    """reward 1.234 [1.1, 1.4] over 3 seeds at KL 2.345 nats; +0.5 [0.3, 0.7] over untrained."""
    text = f"reward {_number(variant.reward, variant.reward_interval)}"
    if variant.num_seeds > 1:
        text += f" over {counted(variant.num_seeds, 'seed')}"
    kl = variant.mean("kl")
    text += "" if kl is None else f" at KL {show(kl)} nats"
    if variant.gain is not None:
        sign = "+" if variant.gain >= 0 else ""
        text += f"; {sign}{_number(variant.gain, variant.gain_interval)} over untrained, by prompt"
    wins = variant.mean("win_rate")
    if wins is None:
        return text
    bounds = interval(variant.finished[0], "win_rate") if variant.num_seeds == 1 else None
    between = "" if bounds is None else f" [{100 * bounds[0]:.0f}%, {100 * bounds[1]:.0f}%]"
    return f"{text}, better on {100 * wins:.0f}%{between} of the prompts"


def _told_apart(pooled: Pooled) -> list[str]:
    """Which others the prompts cannot tell from the best; nothing where that is unknown."""
    if pooled.best is None or pooled.best.standing is None:
        return []
    peers = [variant.name for variant in pooled.peers]
    others = sum(variant.reward is not None for variant in pooled.variants) - 1
    lines: list[str] = []
    if pooled.untrained is not None and not pooled.untrained.distinguishable:
        lines.append(
            "These prompts do not show that training helped: the untrained policy is not "
            f"distinguishable from the best (p = {pooled.untrained.p_value:.2g})"
        )
    if peers:
        lines.append(f"Not distinguishable from it: {_names(peers)} ({len(peers)} of {others})")
    elif others:
        lines.append(f"It is better than all others that have a reward ({others})")
    return lines


def _method(pooled: Pooled) -> str:
    """How many seeds there are, and where intervals and marks come from."""
    if pooled.best is None:
        return ""
    seeds = f" x {pooled.num_seeds} seeds" if pooled.num_seeds > 1 else ""
    text = f"{seeds}; 95% intervals: {INTERVAL_METHOD}{' and seeds' if seeds else ''}"
    return text if pooled.best.standing is None else f"{text}; told apart by {METHOD}"


def _still_missing(results: SweepResults) -> str:
    """What a report of a running sweep still lacks."""
    return f"; not finished: {', '.join(results.missing)}" if results.missing else ""


def _untrained_line(comparison: Comparison) -> str:
    if comparison.untrained is None:
        return "Untrained policy: not evaluated yet"
    reward = metric(comparison.untrained, "reward_mean")
    if reward is None:
        return "Untrained policy: no reward"
    return f"Untrained policy: reward {_number(reward, interval(comparison.untrained))}"


def _why_no_best(comparison: Comparison) -> str:
    if not comparison.finished:
        return "Best reward: no trial has succeeded"
    return "Best reward: none, the trials were evaluated without a reward"


# --- the table -----------------------------------------------------------------------------------


def _table(comparison: Comparison, pooled: Pooled) -> Sequence[str]:
    """The untrained policy and the grid points, in grid order or, of many, the best ones."""
    shown, left_out = pooled.variants, max(0, len(pooled.variants) - MAX_ROWS)
    if left_out:
        shown = sorted(shown, key=lambda v: -1e300 if v.reward is None else v.reward)[-MAX_ROWS:]
        shown.reverse()
    seeds = ["seeds"] if pooled.num_seeds > 1 else []
    head = ["trial", "status", *seeds, "reward_mean", "reward_gain", *METRICS, "best?"]
    rows = [] if comparison.untrained is None else [_untrained_cells(comparison.untrained, pooled)]
    rows += [_cells(variant, pooled) for variant in shown]
    lines = [
        f"| {' | '.join(head)} |",
        f"|---|---|{'---:|' * (len(head) - 3)}---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    if left_out:
        lines += ["", f"{left_out} more with lower rewards, or without, are in trials.csv."]
    return lines


def _untrained_cells(untrained: TrialResult, pooled: Pooled) -> list[str]:
    reward = _number(metric(untrained, "reward_mean"), interval(untrained))
    numbers = [show(metric(untrained, name)) for name in METRICS]
    mark = "~" if pooled.untrained and not pooled.untrained.distinguishable else ""
    seeds = [DASH] if pooled.num_seeds > 1 else []
    status = untrained.status.value
    return [_code(untrained.name), status, *seeds, reward, DASH, *numbers, mark]


def _cells(variant: Variant, pooled: Pooled) -> list[str]:
    statuses = dict.fromkeys(member.status for member in variant.members)
    status = Status.SUCCEEDED if variant.finished else next(iter(statuses))
    seeds = [f"{variant.num_seeds}/{len(variant.members)}"] if pooled.num_seeds > 1 else []
    numbers = [show(variant.mean(name)) for name in METRICS]
    reward = _number(variant.reward, variant.reward_interval)
    gain = _number(variant.gain, variant.gain_interval)
    mark = "best" if variant is pooled.best else "~" if variant.indistinguishable else ""
    return [_code(variant.name), status.value, *seeds, reward, gain, *numbers, mark]


def _number(value: float | None, bounds: Interval | None) -> str:
    text = show(value)
    return text if bounds is None else f"{text} [{show(bounds[0])}, {show(bounds[1])}]"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(map(_code, names[:MAX_NAMES])) + more


def _code(name: str) -> str:
    return f"`{inline(name)}`"
