"""Plots that compare trials, and training curves, as Plotly figures (dictionaries for JSON).

The page's scripts set colours of text and grid, and use two fields of a trace: `meta` is the key of
the legend button that hides it, `ids` are the trial ids of its points. Comparisons show succeeded
trials only.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from scipy import stats

from prefsweep.orchestrator.report.points import (
    error_bars,
    family_points,
    family_traces,
    interval_bars,
    with_metrics,
)
from prefsweep.orchestrator.report.style import (
    NEUTRAL,
    Family,
    Labelled,
    Plot,
    Trace,
    beta_of,
    in_pixels,
    place_labels,
    plain,
    plot_layout,
    rounded,
    thinned,
)
from prefsweep.orchestrator.results.analysis import Comparison, Pooled, interval, metric
from prefsweep.orchestrator.text import show
from prefsweep.sweeps.grid import number
from prefsweep.sweeps.records import Status, TrialResult

BAND = "rgba(125,133,144,0.16)"
MAX_LABELS = 40
"""Maximum number of points for which betas are shown as labels."""
MIN_TREND_POINTS = 3
"""Minimum number of trials for a trend line."""


def comparison_plots(
    comparison: Comparison, families: Sequence[Family], pooled: Pooled
) -> list[Plot]:
    """Reward against KL, entropy and beta; [] without rewards."""
    drawn = [result for result in comparison.finished if metric(result, "reward_mean") is not None]
    if not drawn:
        return []
    plots = [
        _reward_against_kl(comparison, families, pooled),
        _reward_against_entropy(comparison, families),
        _reward_by_beta(comparison, families),
    ]
    for plot in plots:
        _add_intervals_of_means(plot.figure["data"], pooled)
    return [plot for plot in plots if plot.figure["data"]]


def _add_intervals_of_means(data: Sequence[Trace], pooled: Pooled) -> None:
    """Set the error bars of points that are means over seeds."""
    by_trial = pooled.by_trial
    for trace in data:
        if not any(" " in ids for ids in trace.get("ids", ())):
            continue
        variants = [by_trial[ids.split(" ")[0]] for ids in trace["ids"]]
        bounds = [variant.reward_interval for variant in variants]
        trace["error_y"] = interval_bars(bounds, trace["y"], trace["marker"]["color"])


def _reward_against_kl(comparison: Comparison, families: Sequence[Family], pooled: Pooled) -> Plot:
    data = _scatter(families, "kl", label=_label_fits(comparison))
    sampled = _add_frontier(data, pooled)
    untrained = comparison.untrained
    if len(pooled.pareto) > 1:
        data.insert(0, _frontier_line(pooled))
    if metric(untrained, "reward_mean") is not None and untrained is not None:
        data.append(_untrained_point(untrained, 0.0))
    _spread_labels(data, width=920, height=330)
    layout = plot_layout("KL(policy || untrained), nats", height=460)
    layout["xaxis"]["rangemode"] = "tozero"
    joined = "The wide line connects the Pareto set, as measured." if len(pooled.pareto) > 1 else ""
    betas = "The number beside a point is its beta." if _label_fits(comparison) else ""
    bars = "the mean reward and the mean KL" if sampled else "the mean reward"
    faint = "The fainter a point, the less likely it is on the frontier." if sampled else ""
    return Plot(
        id="reward-kl",
        title="Reward against KL",
        caption=" ".join(
            part
            for part in (
                f"Up and to the left is better. Bars are 95% intervals of {bars}.",
                f"{betas}{_seeds_note(comparison)}".strip(),
                faint,
                joined,
            )
            if part
        ),
        figure={"data": data, "layout": layout},
    )


FAINTEST = 0.25
"""Opacity of a point that is never on the frontier; 1 for one that always is."""


def _add_frontier(data: Sequence[Trace], pooled: Pooled) -> bool:
    """Set opacity by the probability of being on the frontier, and intervals of KL.

    Only of points that are grid points; of several seeds these are the means. Whether any was set.
    """
    found, by_trial = False, pooled.by_trial
    for trace in data:
        members = [ids.split(" ") for ids in trace.get("ids", ())]
        variants = [by_trial[ids[0]] for ids in members]
        whole = all(len(ids) == v.num_seeds for ids, v in zip(members, variants, strict=True))
        if not variants or not whole or all(v.frontier is None for v in variants):
            continue
        found, colour = True, trace["marker"]["color"]
        trace["marker"]["opacity"] = [
            round(FAINTEST + (1 - FAINTEST) * (v.frontier or 0.0), 3) for v in variants
        ]
        trace["error_x"] = interval_bars([v.kl_interval for v in variants], trace["x"], colour)
    return found


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
        caption="Up and to the right is better: high reward and high diversity. Entropy is that "
        f"of the pooled tokens of all completions.{betas}{_seeds_note(comparison)}{trend}",
        figure={"data": data, "layout": plot_layout("Entropy of the completions, nats")},
    )


def _reward_by_beta(comparison: Comparison, families: Sequence[Family]) -> Plot:
    data: list[Trace] = []
    for index, family in enumerate(families):
        members = with_metrics(family, "reward_mean")
        # Families are shifted so that intervals at the same beta do not overlap.
        shift = 1.035 ** (index - (len(families) - 1) / 2)
        traces = family_traces(family, members, [beta_of(m) * shift for m in members], label=False)
        _add_betas(traces, members)
        data += traces
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
        caption=f"Points of different losses are shifted slightly{band}.",
        figure={"data": data, "layout": layout},
    )


def _spread_labels(data: Sequence[Trace], *, width: float, height: float) -> None:
    """Place the labels of a plot of about this size in pixels."""
    drawn = [trace for trace in data if trace["mode"] != "lines"]
    traces = [trace for trace in drawn if "text" in trace]
    if not traces:
        return
    # Labels must not cover points without a label either.
    x = in_pixels([x for trace in drawn for x in trace["x"]], width)
    y = in_pixels([y for trace in drawn for y in trace["y"]], height)
    texts = [text for trace in drawn for text in trace.get("text", [""] * len(trace["x"]))]
    places = iter(place_labels([Labelled(*p) for p in zip(x, y, texts, strict=True)], width))
    for trace in drawn:
        of_trace = [next(places) for _ in trace["x"]]
        if "text" in trace:
            trace["textposition"] = of_trace


def _add_betas(traces: Sequence[Trace], members: Sequence[TrialResult]) -> None:
    """Store the true betas of shifted points as text, which the plot's table shows."""
    betas = {member.trial_id: number(beta_of(member)) for member in members}
    for trace in traces:
        if "ids" in trace:
            trace["text"] = [betas[ids.split(" ")[0]] for ids in trace["ids"]]


def _scatter(families: Sequence[Family], x: str, *, label: bool) -> list[Trace]:
    """Reward against the metric `x`, two traces per family."""
    data: list[Trace] = []
    for family in families:
        members = with_metrics(family, "reward_mean", x)
        data += family_traces(family, members, [metric(m, x) or 0.0 for m in members], label=label)
    return data


def _with_trends(families: Sequence[Family], *, label: bool) -> list[Trace]:
    """Reward against entropy: trend line (if any) and points of each family."""
    data: list[Trace] = []
    for family in families:
        members = with_metrics(family, "reward_mean", "entropy")
        if not members:
            continue
        entropies = [metric(member, "entropy") or 0.0 for member in members]
        trend = _trend(family, entropies, [metric(m, "reward_mean") or 0.0 for m in members])
        data += [
            *([trend] if trend else []),
            *family_points(family, members, entropies, label=label),
        ]
    return data


def _trend(family: Family, x: Sequence[float], rewards: Sequence[float]) -> Trace | None:
    """Least-squares line of reward on x; None for too few or equal values of x."""
    if len(x) < MIN_TREND_POINTS or min(x) == max(x):
        return None
    fit: Any = stats.linregress(x, rewards)
    ends = [min(x), max(x)]
    about = f"trend: {show(fit.slope)} reward a nat, r\u00b2 {show(fit.rvalue**2)}"
    return {
        "type": "scatter",
        "mode": "lines",
        "meta": family.key,
        "name": plain(f"{family.label} (trend)"),
        "x": rounded(ends),
        "y": rounded([fit.intercept + fit.slope * end for end in ends]),
        "line": {"color": family.colour, "width": 1.5, "dash": "dash"},
        "opacity": 0.7,
        "hovertemplate": f"<b>{plain(family.label)}</b><br>{about}<extra></extra>",
    }


def _seeds_note(comparison: Comparison) -> str:
    seeds = {result.trial.seed for result in comparison.finished if result.trial is not None}
    return (
        " Small points are seeds; large points are their means, with 95% intervals."
        if len(seeds) > 1
        else ""
    )


def _label_fits(comparison: Comparison) -> bool:
    return len(comparison.finished) <= MAX_LABELS


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


def _frontier_line(pooled: Pooled) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto set",
        "x": rounded([variant.mean("kl") or 0.0 for variant in pooled.pareto]),
        "y": rounded([variant.reward or 0.0 for variant in pooled.pareto]),
        "line": {"color": "rgba(125,133,144,0.28)", "width": 9},
        "hoverinfo": "skip",
    }


def untrained_band(untrained: TrialResult | None, *, along: Literal["x", "y"] = "y") -> list[Trace]:
    """The untrained policy's mean as a line and its interval as a band across the plot.

    `along` is the axis of the reward.
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


# --- training curves ------------------------------------------------------------------------------


MAX_CURVE_POINTS = 300
"""Maximum points of a training curve; longer ones are thinned evenly."""
MAX_PLOT_POINTS, MIN_CURVE_POINTS = 15_000, 24
"""Maximum points of all curves of a plot together, and minimum per curve."""
CURVES = {
    "loss": "Training loss",
    "rewards/margins": "Margin of the implicit rewards",
    "rewards/accuracies": "Accuracy of the implicit rewards",
    "grad_norm": "Gradient norm",
    "eval/reward_mean": "Held-out reward during training",
    "eval/kl": "Held-out KL during training, nats",
}
"""Key of a history record -> title of its plot; plots without data are omitted."""
DASHES = {
    "solid": "none",
    "dash": "5 3",
    "dot": "1.5 2.5",
    "dashdot": "5 2.5 1.5 2.5",
    "longdash": "9 3",
    "longdashdot": "9 2.5 1.5 2.5",
}
"""Line styles of the trials of a family, in order: Plotly name -> SVG dash array."""


def training_plots(families: Sequence[Family]) -> list[Plot]:
    """One plot per logged quantity with one line per trial; its meta is `trial:<trial_id>`."""
    hidden, styles = hidden_at_first(families), list(DASHES)
    num = sum(bool(member.history) for family in families for member in family.members)
    most = min(MAX_CURVE_POINTS, max(MIN_CURVE_POINTS, MAX_PLOT_POINTS // max(num, 1)))
    plots: list[Plot] = []
    for key, title in CURVES.items():
        data = [
            trace | {"visible": member.trial_id not in hidden}
            for family in families
            for rank, member in enumerate(family.members)
            if (points := thinned(_series(member.history, key), most))
            for trace in [_curve(member, points, family.colour, styles[rank % len(styles)])]
        ]
        if data:
            layout = plot_layout("step", y_title="", height=270)
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
    """Ids of failed trials, whose curves may be out of scale; none if all trials failed."""
    logged = [member for family in families for member in family.members if member.history]
    failed = {member.trial_id for member in logged if member.status is Status.FAILED}
    return set() if len(failed) == len(logged) else failed


def _curve(
    result: TrialResult, points: Sequence[tuple[float, float]], colour: str, dash: str
) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines" if len(points) > 1 else "markers",
        "meta": f"trial:{result.trial_id}",
        "name": plain(result.name),
        "x": rounded([step for step, _ in points]),
        "y": rounded([value for _, value in points]),
        "line": {"color": colour, "width": 1.6, "dash": dash},
        "hovertemplate": "%{fullData.name}<br>step %{x}: %{y:.4g}<extra></extra>",
    }


def _series(history: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the records with this key; NaN is kept as a gap in the line."""
    return [
        (record["step"], value)
        for record in history
        if "step" in record and (value := record.get(key)) is not None
    ]
