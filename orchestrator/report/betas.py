"""A plot of all losses at one beta, which the reader can choose."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefsweep.orchestrator.report.figures import untrained_band
from prefsweep.orchestrator.report.points import error_bars, with_metrics
from prefsweep.orchestrator.report.style import (
    Family,
    Plot,
    Trace,
    beta_of,
    plain,
    plot_layout,
    rounded,
)
from prefsweep.orchestrator.results.analysis import Comparison, interval, metric
from prefsweep.sweeps.grid import number
from prefsweep.sweeps.records import TrialResult

ROW_HEIGHT, MARGIN_HEIGHT = 34, 76
"""Heights in pixels: per loss, and of the margins."""
SEED_SPREAD = 0.5
"""Share of the row height over which the seeds of a loss are spread."""
Row = tuple[Family, list[TrialResult]]


@dataclass(frozen=True, slots=True)
class ChoicePlot:
    """A plot with choices; traces whose meta is not the key of the current choice are hidden."""

    plot: Plot
    choices: list[dict[str, Any]]
    """{"key", "label", "layout": changes to the layout}, in the order of the menu."""
    chosen: int
    """Index of the initial choice."""


def losses_at_one_beta(comparison: Comparison, families: Sequence[Family]) -> ChoicePlot | None:
    """Rewards of all losses at one beta, at first that with most losses; None without rewards."""
    rows_at = _rows_by_beta(families)
    if not rows_at:
        return None
    betas = sorted(rows_at)
    chosen = max(betas, key=lambda beta: (len(rows_at[beta]), -beta))
    choices = [
        {"key": f"beta:{number(b)}", "label": number(b), "layout": _rows_layout(rows_at[b])}
        for b in betas
    ]
    data = [
        trace | {"meta": f"beta:{number(beta)}", "visible": beta == chosen}
        for beta in betas
        for trace in _traces(rows_at[beta])
    ]
    height = _height(rows_at[chosen])
    layout = plot_layout("Reward (mean)", y_title="", height=height)
    layout["xaxis"]["range"] = _reward_range(comparison.untrained, rows_at)
    rows = _rows_layout(rows_at[chosen])
    layout["yaxis"] |= {"showgrid": False} | {
        name.removeprefix("yaxis."): value
        for name, value in rows.items()
        if name.startswith("yaxis.")
    }
    layout["shapes"] = untrained_band(comparison.untrained, along="x")
    band = " The grey line is the untrained policy." if layout["shapes"] else ""
    plot = Plot(
        id="reward-at-beta",
        title="All losses at one beta",
        caption=f"The best is at the top; bars are 95% intervals of the mean reward.{band}",
        figure={"data": data, "layout": layout},
    )
    return ChoicePlot(plot=plot, choices=choices, chosen=betas.index(chosen))


def _rows_by_beta(families: Sequence[Family]) -> dict[float, list[Row]]:
    """beta -> families with their trials (one per seed), by mean reward ascending."""
    rows_at: dict[float, list[Row]] = {}
    for family in families:
        at: dict[float, list[TrialResult]] = {}
        for member in with_metrics(family, "reward_mean"):
            at.setdefault(beta_of(member), []).append(member)
        for beta, members in at.items():
            rows_at.setdefault(beta, []).append((family, members))
    return {
        beta: sorted(rows, key=lambda row: statistics.fmean(_rewards(row[1])))
        for beta, rows in rows_at.items()
    }


def _rows_layout(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "height": _height(rows),
        "yaxis.tickvals": list(range(len(rows))),
        "yaxis.ticktext": [plain(family.label) for family, _ in rows],
        "yaxis.range": [-0.6, len(rows) - 0.4],
    }


def _height(rows: Sequence[Row]) -> int:
    return MARGIN_HEIGHT + ROW_HEIGHT * len(rows)


def _traces(rows: Sequence[Row]) -> list[Trace]:
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": plain(family.label),
            "x": rounded(_rewards(members)),
            "y": rounded(_heights(at, len(members))),
            "error_x": error_bars(members, _rewards(members), family.colour),
            "marker": {"color": family.colour, "symbol": family.symbol, "size": 10},
            "ids": [member.trial_id for member in members],
        }
        for at, (family, members) in enumerate(rows)
    ]


def _heights(row: int, num: int) -> list[float]:
    """y positions of a row's points, the first seed on top."""
    return [row + SEED_SPREAD * ((num - 1) / 2 - i) / num for i in range(num)]


def _rewards(members: Sequence[TrialResult]) -> list[float]:
    return [metric(member, "reward_mean") or 0.0 for member in members]


def _reward_range(
    untrained: TrialResult | None, rows_at: dict[float, list[Row]]
) -> list[float | None]:
    """One range for all betas, so that plots at different betas can be compared."""
    drawn = [m for rows in rows_at.values() for _, members in rows for m in members]
    if untrained is not None and metric(untrained, "reward_mean") is not None:
        drawn.append(untrained)
    ends = [*_rewards(drawn), *(end for result in drawn for end in interval(result) or ())]
    room = 0.05 * (max(ends) - min(ends)) or 0.5
    return rounded([min(ends) - room, max(ends) + room])
