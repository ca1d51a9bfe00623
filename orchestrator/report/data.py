"""The data section: what every stage made, what was dropped and why, and histograms."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from prefsweep.orchestrator.report.families import NEUTRAL
from prefsweep.orchestrator.report.plot import Plot, Trace, plot_layout, rounded
from prefsweep.orchestrator.text import duration, show
from prefsweep.sweeps.records import DROPPED, Histogram, StageResult, SweepResults

SERIES = {
    "all": NEUTRAL,
    "chosen": "#2f7ed8",
    "rejected": "#d9690f",
    "pairs": "#2f7ed8",
}
"""Series of a histogram -> colour."""
"""How notes that count what was left out begin."""


def data_plots(results: SweepResults) -> list[Plot]:
    """Histograms of what there is."""
    data = results.data
    drawn = (
        ("data-scores", "Rewards of the completions", "reward", data.scores),
        ("data-margins", "Reward gap of a pair", "chosen - rejected reward", data.margins),
        ("data-lengths", "Length of the completions in pairs", "tokens", data.lengths),
    )
    return [
        Plot(id=key, title=title, caption=_caption(key), figure=_figure(histogram, x_title))
        for key, title, x_title, histogram in drawn
        if histogram is not None
    ]


def stage_rows(results: SweepResults) -> list[dict[str, Any]]:
    """One row per finished stage."""
    return [
        {
            "name": stage.name,
            "rows": f"{stage.rows:,}",
            "notes": [f"{_words(name)}: {count(value)}" for name, value in _other_notes(stage)],
            "duration": duration(stage.seconds),
            "fingerprint": stage.fingerprint,
            "found": stage.found,
        }
        for stage in results.stages
    ]


def dropped(results: SweepResults) -> dict[str, Any]:
    """{"rows": [{"stage", "reason", "count", "share"}] of everything left out, "none": the reasons
    that struck nothing}."""
    rows: list[dict[str, Any]] = []
    none: list[str] = []
    for stage in results.stages:
        reasons = {n.removeprefix(DROPPED): v for n, v in stage.notes.items() if _is(n)}
        candidates = stage.rows + sum(reasons.values())
        none += [reason for reason, value in reasons.items() if not value]
        rows += [
            {
                "stage": stage.name,
                "reason": reason,
                "count": count(value),
                "share": f"{100 * value / candidates:.1f}% of {count(candidates)}",
            }
            for reason, value in reasons.items()
            if value
        ]
    return {"rows": rows, "none": none}


def count(value: float) -> str:
    """A count as it is read; other numbers as everywhere."""
    return f"{int(value):,}" if math.isfinite(value) and value == int(value) else show(value)


def _is(name: str) -> bool:
    return name.startswith(DROPPED)


def _other_notes(stage: StageResult) -> list[tuple[str, float]]:
    """Those that are neither what was left out nor the time, which the page has elsewhere."""
    return [
        (name, value) for name, value in stage.notes.items() if not _is(name) and name != "seconds"
    ]


def _words(name: str) -> str:
    return name.removeprefix("num_").replace("_", " ")


def _caption(key: str) -> str:
    return {
        "data-scores": "A completion counts once for each pair that it is chosen or rejected in.",
        "data-margins": "A pair with a small gap says little about which completion is better.",
        "data-lengths": "Where chosen completions are longer, training may learn length.",
    }[key]


def _figure(histogram: Histogram, x_title: str) -> dict[str, Any]:
    layout = plot_layout(x_title, y_title="count", height=260)
    several = len(histogram.counts) > 1
    layout |= {"barmode": "overlay", "bargap": 0, "showlegend": several}
    layout["legend"] = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemwidth": 30}
    layout["margin"]["t"] = 32 if several else 12
    layout["yaxis"]["rangemode"] = "tozero"
    return {
        "data": [_bars(histogram.edges, name, counts) for name, counts in histogram.counts.items()],
        "layout": layout,
    }


def _bars(edges: Sequence[float], name: str, counts: Sequence[int]) -> Trace:
    width = edges[1] - edges[0]
    return {
        "type": "bar",
        "name": name,
        "x": rounded([(low + high) / 2 for low, high in itertools.pairwise(edges)]),
        "y": list(counts),
        "width": width,
        "marker": {"color": SERIES.get(name, NEUTRAL), "line": {"width": 0}},
        "opacity": 0.35 if name == "all" else 0.6,
        "hovertemplate": f"{name}: %{{y}} at %{{x:.4g}}<extra></extra>",
    }
