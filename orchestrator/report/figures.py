"""The plots of the page as Plotly figures: plain dictionaries that go into the page as JSON.

Colours of text and grid are left to report.js, which knows whether the page is light or dark.
A trace's `meta` is the key of the legend button that hides it. Only succeeded trials are drawn
in the comparisons; every trial that has logged something has its training curve.
"""

import html
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefsweep.orchestrator.report.families import NEUTRAL, Family, beta_of
from prefsweep.orchestrator.report.formats import show
from prefsweep.orchestrator.report.frontier import Comparison, interval, metric
from prefsweep.sweeps.grid import number
from prefsweep.sweeps.records import Status, TrialResult

BAND = "rgba(125,133,144,0.16)"
MAX_LABELS = 40
"""Points that still get their beta written beside them."""
MAX_CURVE_POINTS = 300
"""Points of a training curve; longer ones are thinned evenly."""
CURVES = {
    "loss": "Training loss",
    "rewards/margins": "Margin of the implicit rewards",
    "rewards/accuracies": "Accuracy of the implicit rewards",
    "grad_norm": "Gradient norm",
    "eval/reward_mean": "Held-out reward on the way",
    "eval/kl": "Held-out KL on the way, nats",
}
"""Key of a history record -> title of its plot; a plot without data is left out."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
"""Line styles of a family's trials, by beta and seed."""

Trace = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot of the page; `figure` has Plotly's `data` and `layout`."""

    id: str
    title: str
    caption: str
    figure: dict[str, Any]


def comparison_plots(comparison: Comparison, families: Sequence[Family]) -> list[Plot]:
    """Reward against KL, against entropy and against beta; [] where there is no reward."""
    drawn = [result for result in comparison.finished if metric(result, "reward_mean") is not None]
    if not drawn:
        return []
    return [
        _reward_against_kl(comparison, families),
        _reward_against_entropy(comparison, families),
        _reward_by_beta(comparison, families),
    ]


def _reward_against_kl(comparison: Comparison, families: Sequence[Family]) -> Plot:
    data = _scatter(families, "kl")
    untrained = comparison.untrained
    if comparison.pareto:
        data.insert(0, _frontier_line(comparison))
    if metric(untrained, "reward_mean") is not None and untrained is not None:
        data.append(_untrained_point(untrained, 0.0, "bottom right"))
    layout = _layout("KL(policy || untrained), nats", height=460)
    layout["xaxis"]["rangemode"] = "tozero"
    return Plot(
        id="reward-kl",
        title="Reward against drift",
        caption="Up and to the left is better. Bars are 95% intervals of the mean reward; the "
        "number beside a point is its beta; the broad line joins the Pareto set.",
        figure={"data": data, "layout": layout},
    )


def _reward_against_entropy(comparison: Comparison, families: Sequence[Family]) -> Plot:
    data = _scatter(families, "entropy")
    untrained = comparison.untrained
    entropy = metric(untrained, "entropy")
    if untrained is not None and entropy is not None:
        others = [metric(result, "entropy") or entropy for result in comparison.finished]
        side = "left" if entropy > statistics.fmean(others) else "right"
        data.append(_untrained_point(untrained, entropy, f"bottom {side}"))
    return Plot(
        id="reward-entropy",
        title="Reward against entropy",
        caption="Up and to the right is better: reward that did not cost diversity. Entropy is of "
        "the pooled tokens of all completions.",
        figure={"data": data, "layout": _layout("Entropy of the completions, nats")},
    )


def _reward_by_beta(comparison: Comparison, families: Sequence[Family]) -> Plot:
    data: list[Trace] = []
    for index, family in enumerate(families):
        members = _with_metrics(family, "reward_mean")
        # Families are moved apart so that intervals at the same beta can be told apart.
        shift = 1.035 ** (index - (len(families) - 1) / 2)
        data += _family_traces(family, members, [beta_of(m) * shift for m in members], label=False)
    betas = sorted({beta_of(result) for result in comparison.finished})
    layout = _layout("beta (log scale)")
    layout["xaxis"] |= {"type": "log", "showgrid": False}
    if len(betas) <= 10:
        layout["xaxis"] |= {"tickvals": betas, "ticktext": [number(beta) for beta in betas]}
    layout["shapes"] = _untrained_band(comparison.untrained)
    band = "; the grey band is the untrained policy" if layout["shapes"] else ""
    return Plot(
        id="reward-beta",
        title="Reward by beta",
        caption=f"Points of different losses are moved apart a little{band}.",
        figure={"data": data, "layout": layout},
    )


def _scatter(families: Sequence[Family], x: str) -> list[Trace]:
    """Reward against the metric `x`, two traces a family."""
    drawn = {family.key: _with_metrics(family, "reward_mean", x) for family in families}
    label = sum(map(len, drawn.values())) <= MAX_LABELS
    data: list[Trace] = []
    for family in families:
        members = drawn[family.key]
        data += _family_traces(family, members, [metric(m, x) or 0.0 for m in members], label=label)
    return data


def _with_metrics(family: Family, *names: str) -> list[TrialResult]:
    """The family's succeeded trials that have all of these metrics."""
    return [
        member
        for member in family.members
        if member.status is Status.SUCCEEDED
        and all(metric(member, name) is not None for name in names)
    ]


def _family_traces(
    family: Family, members: Sequence[TrialResult], x: Sequence[float], *, label: bool
) -> list[Trace]:
    """A line along beta through the means over seeds, and a point with its interval per trial."""
    if not members:
        return []
    rewards = [metric(member, "reward_mean") or 0.0 for member in members]
    line_x, line_y = _means_by_beta(members, x, rewards)
    common = {"type": "scatter", "meta": family.key, "name": _plain(family.label)}
    line = common | {
        "mode": "lines",
        "x": _rounded(line_x),
        "y": _rounded(line_y),
        "line": {"color": family.colour, "width": 1.5},
        "opacity": 0.6,
        "hoverinfo": "skip",
    }
    points = common | {
        "mode": "markers+text" if label else "markers",
        "x": _rounded(x),
        "y": _rounded(rewards),
        "error_y": _error_bars(members, rewards, family.colour),
        "marker": {"color": family.colour, "symbol": family.symbol, "size": 10},
        "text": [f"\u00a0{number(beta_of(member))}" for member in members],
        "textposition": "middle right",
        "textfont": {"color": family.colour, "size": 12},
        "customdata": [_hover(member) for member in members],
        "hovertemplate": "%{customdata}<extra></extra>",
        "cliponaxis": False,
    }
    return [line, points]


def _means_by_beta(
    members: Sequence[TrialResult], x: Sequence[float], y: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Mean x and mean y over the seeds of each beta, by beta ascending."""
    groups: dict[float, list[tuple[float, float]]] = {}
    for member, at, reward in zip(members, x, y, strict=True):
        groups.setdefault(beta_of(member), []).append((at, reward))
    means = [
        tuple(statistics.fmean(values) for values in zip(*group, strict=True))
        for _, group in sorted(groups.items())
    ]
    return [mean[0] for mean in means], [mean[1] for mean in means]


def _error_bars(members: Sequence[TrialResult], rewards: Sequence[float], colour: str) -> Trace:
    bounds = [interval(m) or (r, r) for m, r in zip(members, rewards, strict=True)]
    up = [high - r for (_, high), r in zip(bounds, rewards, strict=True)]
    down = [r - low for (low, _), r in zip(bounds, rewards, strict=True)]
    return {
        "type": "data",
        "symmetric": False,
        "array": _rounded(up),
        "arrayminus": _rounded(down),
        "color": colour,
        "thickness": 1.2,
        "width": 3,
    }


def _untrained_point(untrained: TrialResult, x: float, label_side: str) -> Trace:
    reward = metric(untrained, "reward_mean") or 0.0
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": "untrained",
        "x": _rounded([x]),
        "y": _rounded([reward]),
        "error_y": _error_bars([untrained], [reward], NEUTRAL),
        "marker": {"color": NEUTRAL, "symbol": "star", "size": 15},
        "text": ["\u00a0untrained\u00a0"],
        "textposition": label_side,
        "textfont": {"color": NEUTRAL, "size": 12},
        "customdata": [_hover(untrained)],
        "hovertemplate": "%{customdata}<extra></extra>",
        "cliponaxis": False,
    }


def _frontier_line(comparison: Comparison) -> Trace:
    """From the untrained policy, which nothing dominates, along the Pareto set."""
    start = metric(comparison.untrained, "reward_mean")
    kls = [metric(result, "kl") or 0.0 for result in comparison.pareto]
    rewards = [metric(result, "reward_mean") or 0.0 for result in comparison.pareto]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto set",
        "x": _rounded(kls if start is None else [0.0, *kls]),
        "y": _rounded(rewards if start is None else [start, *rewards]),
        "line": {"color": "rgba(125,133,144,0.28)", "width": 9},
        "hoverinfo": "skip",
    }


def _untrained_band(untrained: TrialResult | None) -> list[Trace]:
    """The untrained policy's interval as a band over the whole width, its mean as a line."""
    reward, bounds = metric(untrained, "reward_mean"), interval(untrained)
    if reward is None:
        return []
    across = {"xref": "paper", "x0": 0, "x1": 1, "yref": "y", "layer": "below"}
    mean = across | {
        "type": "line",
        "y0": reward,
        "y1": reward,
        "line": {"color": NEUTRAL, "width": 1.5},
    }
    if bounds is None:
        return [mean]
    band = {"type": "rect", "y0": bounds[0], "y1": bounds[1], "fillcolor": BAND}
    return [across | band | {"line": {"width": 0}}, mean]


def _hover(result: TrialResult) -> str:
    bounds = interval(result)
    around = f" [{show(bounds[0])}, {show(bounds[1])}]" if bounds else ""
    return "<br>".join(
        (
            f"<b>{_plain(result.name)}</b>",
            f"reward {show(metric(result, 'reward_mean'))}{around}",
            f"KL {show(metric(result, 'kl'))} nats",
            f"entropy {show(metric(result, 'entropy'))} nats",
            f"win rate {show(metric(result, 'win_rate'))}",
        )
    )


# --- training curves -----------------------------------------------------------------------------


def training_plots(families: Sequence[Family]) -> list[Plot]:
    """One plot per logged quantity, one line per trial, whose meta is `trial:<trial_id>`."""
    hidden = hidden_at_first(families)
    plots: list[Plot] = []
    for key, title in CURVES.items():
        data = [
            trace | {"visible": member.trial_id not in hidden}
            for family in families
            for rank, member in enumerate(family.members)
            if (trace := _curve(member, key, family.colour, DASHES[rank % len(DASHES)]))
        ]
        if data:
            layout = _layout("step", y_title="", height=270)
            plots.append(
                Plot(
                    id=f"curve-{key.replace('/', '-')}",
                    title=title,
                    caption="",
                    figure={"data": data, "layout": layout},
                )
            )
    return plots


def hidden_at_first(families: Sequence[Family]) -> set[str]:
    """Ids of the failed trials, unless nothing else has a curve: one that diverged flattens all."""
    logged = [member for family in families for member in family.members if member.history]
    failed = {member.trial_id for member in logged if member.status is Status.FAILED}
    return set() if len(failed) == len(logged) else failed


def _curve(result: TrialResult, key: str, colour: str, dash: str) -> Trace | None:
    points = _series(result.history, key)
    if not points:
        return None
    points = _thinned(points)
    return {
        "type": "scatter",
        "mode": "lines" if len(points) > 1 else "markers",
        "meta": f"trial:{result.trial_id}",
        "name": _plain(result.name),
        "x": _rounded([step for step, _ in points]),
        "y": _rounded([value for _, value in points]),
        "line": {"color": colour, "width": 1.6, "dash": dash},
        "hovertemplate": f"{_plain(result.name)}<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
    }


def _series(history: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the records that hold the key; a NaN stays, to leave a gap in the line."""
    return [
        (record["step"], value)
        for record in history
        if "step" in record and (value := record.get(key)) is not None
    ]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_CURVE_POINTS, evenly spaced, the first and the last among them."""
    if len(points) <= MAX_CURVE_POINTS:
        return points
    last = len(points) - 1
    return [points[i * last // (MAX_CURVE_POINTS - 1)] for i in range(MAX_CURVE_POINTS)]


# --- shared --------------------------------------------------------------------------------------


def _layout(x_title: str, *, y_title: str = "Reward (mean)", height: int = 380) -> Trace:
    return {
        "height": height,
        "showlegend": False,
        "hovermode": "closest",
        "margin": {"l": 52, "r": 24, "t": 12, "b": 48},
        "xaxis": {"title": {"text": x_title}, "automargin": True, "zeroline": False},
        "yaxis": {"title": {"text": y_title}, "automargin": True, "zeroline": False},
    }


def _rounded(values: Sequence[float]) -> list[float | None]:
    """Six significant digits are more than a plot shows; NaN and infinity are gaps."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def _plain(text: str) -> str:
    """Plotly reads a little HTML in its texts; names are not HTML, and no template either."""
    return html.escape(text, quote=False).replace("%{", "%\u200b{")
