"""The plots that compare trials, as Plotly figures: plain dictionaries that become JSON.

Colours of text and grid are left to report.js, which knows whether the page is light or dark.
A trace's `meta` is the key of the legend button that hides it, its `ids` are the trials of its
points: what report.js shows of a point it looks up by them. Only succeeded trials are drawn.
"""

import html
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scipy import stats

from prefsweep.orchestrator.report.families import NEUTRAL, Family, beta_of
from prefsweep.orchestrator.report.formats import show
from prefsweep.orchestrator.report.frontier import Comparison, interval, metric
from prefsweep.orchestrator.report.labels import Labelled, in_pixels, place_labels
from prefsweep.sweeps.grid import number
from prefsweep.sweeps.records import Status, TrialResult

BAND = "rgba(125,133,144,0.16)"
MAX_LABELS = 40
"""Points that still get their beta written beside them."""
MIN_TREND_POINTS = 3
"""Trials that a trend line takes; two would always lie on it."""
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
    plots = [
        _reward_against_kl(comparison, families),
        _reward_against_entropy(comparison, families),
        _reward_by_beta(comparison, families),
    ]
    return [plot for plot in plots if plot.figure["data"]]


def _reward_against_kl(comparison: Comparison, families: Sequence[Family]) -> Plot:
    data = _scatter(families, "kl", label=_label_fits(comparison))
    untrained = comparison.untrained
    if len(comparison.pareto) > 1:
        data.insert(0, _frontier_line(comparison))
    if metric(untrained, "reward_mean") is not None and untrained is not None:
        data.append(_untrained_point(untrained, 0.0))
    _spread_labels(data, width=920, height=330)
    layout = plot_layout("KL(policy || untrained), nats", height=460)
    layout["xaxis"]["rangemode"] = "tozero"
    joined = "The broad line joins the Pareto set." if len(comparison.pareto) > 1 else ""
    betas = "The number beside a point is its beta." if _label_fits(comparison) else ""
    return Plot(
        id="reward-kl",
        title="Reward against drift",
        caption="Up and to the left is better. Bars are 95% intervals of the mean reward. "
        f"{betas}{_seeds_note(comparison)} {joined}".rstrip(),
        figure={"data": data, "layout": layout},
    )


def _reward_against_entropy(comparison: Comparison, families: Sequence[Family]) -> Plot:
    data = _with_trends(families, label=_label_fits(comparison))
    trend = " Lines are least-squares fits." if any(t["mode"] == "lines" for t in data) else ""
    betas = " The number beside a point is its beta." if _label_fits(comparison) else ""
    untrained = comparison.untrained
    entropy = metric(untrained, "entropy")
    if untrained is not None and entropy is not None:
        data.append(_untrained_point(untrained, entropy))
    _spread_labels(data, width=400, height=280)
    return Plot(
        id="reward-entropy",
        title="Reward against entropy",
        caption="Up and to the right is better: reward that did not cost diversity. Entropy is of "
        f"the pooled tokens of all completions.{betas}{_seeds_note(comparison)}{trend}",
        figure={"data": data, "layout": plot_layout("Entropy of the completions, nats")},
    )


def _reward_by_beta(comparison: Comparison, families: Sequence[Family]) -> Plot:
    data: list[Trace] = []
    for index, family in enumerate(families):
        members = with_metrics(family, "reward_mean")
        # Families are moved apart so that intervals at the same beta can be told apart.
        shift = 1.035 ** (index - (len(families) - 1) / 2)
        data += _family_traces(family, members, [beta_of(m) * shift for m in members], label=False)
    betas = sorted({beta_of(result) for result in comparison.finished})
    layout = plot_layout("beta (log scale)")
    layout["xaxis"] |= {"type": "log", "showgrid": False}
    if len(betas) <= 10:
        layout["xaxis"] |= {"tickvals": betas, "ticktext": [number(beta) for beta in betas]}
    layout["shapes"] = untrained_band(comparison.untrained)
    band = "; the grey band is the untrained policy" if layout["shapes"] else ""
    return Plot(
        id="reward-beta",
        title="Reward by beta",
        caption=f"Points of different losses are moved apart a little{band}.",
        figure={"data": data, "layout": layout},
    )


def _spread_labels(data: Sequence[Trace], *, width: float, height: float) -> None:
    """Set the place of every label of a plot whose points cover about this many pixels."""
    drawn = [trace for trace in data if trace["mode"] != "lines"]
    traces = [trace for trace in drawn if "text" in trace]
    if not traces:
        return
    # Points without a label are in the way too.
    x = in_pixels([x for trace in drawn for x in trace["x"]], width)
    y = in_pixels([y for trace in drawn for y in trace["y"]], height)
    texts = [text for trace in drawn for text in trace.get("text", [""] * len(trace["x"]))]
    places = iter(place_labels([Labelled(*p) for p in zip(x, y, texts, strict=True)], width))
    for trace in drawn:
        of_trace = [next(places) for _ in trace["x"]]
        if "text" in trace:
            trace["textposition"] = of_trace


def _scatter(families: Sequence[Family], x: str, *, label: bool) -> list[Trace]:
    """Reward against the metric `x`, two traces a family."""
    data: list[Trace] = []
    for family in families:
        members = with_metrics(family, "reward_mean", x)
        data += _family_traces(family, members, [metric(m, x) or 0.0 for m in members], label=label)
    return data


def _with_trends(families: Sequence[Family], *, label: bool) -> list[Trace]:
    """Reward against entropy: the points of each family, over its trend line if it has one."""
    data: list[Trace] = []
    for family in families:
        members = with_metrics(family, "reward_mean", "entropy")
        if not members:
            continue
        entropies = [metric(member, "entropy") or 0.0 for member in members]
        trend = _trend(family, entropies, [metric(m, "reward_mean") or 0.0 for m in members])
        data += [*([trend] if trend else []), *_points(family, members, entropies, label=label)]
    return data


def _trend(family: Family, x: Sequence[float], rewards: Sequence[float]) -> Trace | None:
    """Ordinary least squares of reward on x over the range of x; None for too few or equal x."""
    if len(x) < MIN_TREND_POINTS or min(x) == max(x):
        return None
    fit: Any = stats.linregress(x, rewards)
    ends = [min(x), max(x)]
    about = f"trend: {show(fit.slope)} reward a nat, r\u00b2 {show(fit.rvalue**2)}"
    return {
        "type": "scatter",
        "mode": "lines",
        "meta": family.key,
        "name": plain(family.label),
        "x": rounded(ends),
        "y": rounded([fit.intercept + fit.slope * end for end in ends]),
        "line": {"color": family.colour, "width": 1.5, "dash": "dash"},
        "opacity": 0.7,
        "hovertemplate": f"<b>{plain(family.label)}</b><br>{about}<extra></extra>",
    }


def _seeds_note(comparison: Comparison) -> str:
    seeds = {result.trial.seed for result in comparison.finished if result.trial is not None}
    return " Small points are seeds, the large one is their mean." if len(seeds) > 1 else ""


def _label_fits(comparison: Comparison) -> bool:
    return len(comparison.finished) <= MAX_LABELS


def with_metrics(family: Family, *names: str) -> list[TrialResult]:
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
    means = _means_by_beta(members, x)
    line = {
        "type": "scatter",
        "mode": "lines",
        "meta": family.key,
        "name": plain(family.label),
        "x": rounded([mean.x for mean in means]),
        "y": rounded([mean.reward for mean in means]),
        "line": {"color": family.colour, "width": 1.5},
        "opacity": 0.6,
        "hoverinfo": "skip",
    }
    return [line, *_points(family, members, x, label=label)]


def _points(
    family: Family, members: Sequence[TrialResult], x: Sequence[float], *, label: bool
) -> list[Trace]:
    """Reward at x with its interval, one point a trial, marked with its beta where labels fit.

    Where trials differ in their seed alone their points are small, and their mean has the label.
    """
    means = _means_by_beta(members, x)
    replicated = len(means) < len(members)
    rewards = [metric(member, "reward_mean") or 0.0 for member in members]
    points = _markers(family) | {
        "x": rounded(x),
        "y": rounded(rewards),
        "error_y": error_bars(members, rewards, family.colour),
        "ids": [member.trial_id for member in members],
    }
    if not replicated:
        return [points | _labels(family, means) if label else points]
    points["marker"] |= {"size": 6, "opacity": 0.65}
    points["error_y"] |= {"thickness": 0.8, "width": 0}
    pooled = _markers(family) | {
        "x": rounded([mean.x for mean in means]),
        "y": rounded([mean.reward for mean in means]),
        "ids": [" ".join(mean.trial_ids) for mean in means],
    }
    pooled["marker"] |= {"size": 12}
    return [points, pooled | _labels(family, means) if label else pooled]


def _markers(family: Family) -> Trace:
    return {
        "type": "scatter",
        "meta": family.key,
        "name": plain(family.label),
        "mode": "markers",
        "marker": {"color": family.colour, "symbol": family.symbol, "size": 10},
        "cliponaxis": False,
    }


def _labels(family: Family, means: Sequence["Mean"]) -> Trace:
    return {
        "mode": "markers+text",
        "text": [number(mean.beta) for mean in means],
        "textfont": {"color": family.colour, "size": 12},
    }


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean x and reward over the trials of one beta, which differ in their seeds."""

    beta: float
    x: float
    reward: float
    trial_ids: tuple[str, ...]


def _means_by_beta(members: Sequence[TrialResult], x: Sequence[float]) -> list[Mean]:
    """One mean per beta, by beta ascending."""
    groups: dict[float, list[tuple[float, TrialResult]]] = {}
    for member, at in zip(members, x, strict=True):
        groups.setdefault(beta_of(member), []).append((at, member))
    return [
        Mean(
            beta=beta,
            x=statistics.fmean(at for at, _ in group),
            reward=statistics.fmean(metric(m, "reward_mean") or 0.0 for _, m in group),
            trial_ids=tuple(member.trial_id for _, member in group),
        )
        for beta, group in sorted(groups.items())
    ]


def error_bars(members: Sequence[TrialResult], rewards: Sequence[float], colour: str) -> Trace:
    bounds = [interval(m) or (r, r) for m, r in zip(members, rewards, strict=True)]
    up = [high - r for (_, high), r in zip(bounds, rewards, strict=True)]
    down = [r - low for (low, _), r in zip(bounds, rewards, strict=True)]
    return {
        "type": "data",
        "symmetric": False,
        "array": rounded(up),
        "arrayminus": rounded(down),
        "color": colour,
        "thickness": 1.2,
        "width": 3,
    }


def _untrained_point(untrained: TrialResult, x: float) -> Trace:
    reward = metric(untrained, "reward_mean") or 0.0
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": "untrained",
        "x": rounded([x]),
        "y": rounded([reward]),
        "error_y": error_bars([untrained], [reward], NEUTRAL),
        "marker": {"color": NEUTRAL, "symbol": "star", "size": 15},
        "text": ["untrained"],
        "textfont": {"color": NEUTRAL, "size": 12},
        "ids": [untrained.trial_id],
        "cliponaxis": False,
    }


def _frontier_line(comparison: Comparison) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto set",
        "x": rounded([metric(result, "kl") or 0.0 for result in comparison.pareto]),
        "y": rounded([metric(result, "reward_mean") or 0.0 for result in comparison.pareto]),
        "line": {"color": "rgba(125,133,144,0.28)", "width": 9},
        "hoverinfo": "skip",
    }


def untrained_band(untrained: TrialResult | None, *, along: Literal["x", "y"] = "y") -> list[Trace]:
    """The untrained policy's interval as a band across the plot, its mean as a line.

    Rewards are `along` this axis; the band spans the other.
    """
    reward, bounds = metric(untrained, "reward_mean"), interval(untrained)
    if reward is None:
        return []
    other = "x" if along == "y" else "y"
    across: Trace = {f"{other}ref": "paper", f"{other}0": 0, f"{other}1": 1, "layer": "below"}
    across[f"{along}ref"] = along
    mean = across | {
        "type": "line",
        f"{along}0": reward,
        f"{along}1": reward,
        "line": {"color": NEUTRAL, "width": 1.5},
    }
    if bounds is None:
        return [mean]
    band = {"type": "rect", f"{along}0": bounds[0], f"{along}1": bounds[1], "fillcolor": BAND}
    return [across | band | {"line": {"width": 0}}, mean]


# --- shared --------------------------------------------------------------------------------------


def plot_layout(x_title: str, *, y_title: str = "Reward (mean)", height: int = 380) -> Trace:
    return {
        "height": height,
        "showlegend": False,
        "hovermode": "closest",
        "margin": {"l": 52, "r": 24, "t": 12, "b": 48},
        "xaxis": {"title": {"text": x_title}, "automargin": True, "zeroline": False},
        "yaxis": {"title": {"text": y_title}, "automargin": True, "zeroline": False},
    }


def rounded(values: Sequence[float]) -> list[float | None]:
    """Six significant digits are more than a plot shows; NaN and infinity are gaps."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def plain(text: str) -> str:
    """Plotly reads a little HTML in its texts; names are not HTML, and no template either."""
    return html.escape(text, quote=False).replace("%{", "%\u200b{")
