"""The reward-KL frontier as a picture for a paper: PNG, SVG or PDF, drawn by matplotlib (an extra).

One point per trial with its 95% interval, in the colours of the page; the Pareto set is a line.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefsweep.orchestrator.report.style import NEUTRAL, SYMBOLS, Family, families
from prefsweep.orchestrator.results.analysis import (
    Point,
    compare,
    interval,
    metric,
    pareto,
    untrained_point,
)
from prefsweep.sweeps.errors import DataError, UsageError
from prefsweep.sweeps.records import SweepResults, TrialResult

SIZE_INCHES = (5.5, 3.4)
"""The width of a page of text, in the golden ratio."""
DPI = 300
"""Dots per inch of a PNG."""
FONT_POINTS = 9
_MARKERS = dict(zip(SYMBOLS, ("o", "s", "D", "^", "v", "P", "h"), strict=True))


def write_figure(results: SweepResults, path: Path) -> None:
    """Write the frontier to `path`, in the format of its suffix.

    Raises UsageError without matplotlib, and DataError where no trial has a reward.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            f"{path.suffix.removeprefix('.')} needs matplotlib: pip install matplotlib"
        ) from None
    comparison = compare(results)
    points = {
        result.trial_id: Point(result.trial_id, reward, kl)
        for result in comparison.finished
        if (reward := metric(result, "reward_mean")) is not None
        and (kl := metric(result, "kl")) is not None
    }
    if not points:
        raise DataError(f"sweep {results.sweep}: no trial has a reward and a KL yet to draw")
    style: Any = {
        "font.size": FONT_POINTS,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "prefsweep",  # equal results give equal bytes
        "pdf.fonttype": 42,
    }
    with matplotlib.rc_context(style):
        figure = Figure(SIZE_INCHES, layout="constrained")
        axes = figure.subplots()
        start = untrained_point(comparison.untrained)
        front = pareto([*start, *points.values()])
        axes.plot([p.kl for p in front], [p.reward for p in front], color=NEUTRAL, lw=0.8, zorder=1)
        for family in families(comparison.trials):
            _draw(axes, family, points)
        for point in start:
            axes.plot(point.kl, point.reward, "*", color=NEUTRAL, ms=9, label="untrained")
        axes.set(xlabel="KL to the reference, nats", ylabel="reward (mean, 95% interval)")
        axes.legend(frameon=False, fontsize=FONT_POINTS - 1.5)
        dates = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        figure.savefig(path, dpi=DPI, metadata=dates[path.suffix])


def _draw(axes: Any, family: Family, points: dict[str, Point]) -> None:
    drawn = [result for result in family.members if result.trial_id in points]
    if not drawn:
        return
    rewards = [points[result.trial_id].reward for result in drawn]
    axes.errorbar(
        [points[result.trial_id].kl for result in drawn],
        rewards,
        yerr=_arms(drawn, rewards),
        fmt=_MARKERS[family.symbol],
        color=family.colour,
        label=family.label,
        ms=4.5,
        lw=0.8,
        capsize=1.5,
    )


def _arms(results: Sequence[TrialResult], rewards: Sequence[float]) -> list[list[float]]:
    """Lengths below and above each reward; 0 where there is no interval."""
    bounds = [interval(result) or (r, r) for result, r in zip(results, rewards, strict=True)]
    return [
        [max(0.0, r - low) for r, (low, _) in zip(rewards, bounds, strict=True)],
        [max(0.0, high - r) for r, (_, high) in zip(rewards, bounds, strict=True)],
    ]
