"""Training curves as Plotly figures, of every trial that has logged something."""

from collections.abc import Mapping, Sequence

from prefsweep.orchestrator.report.families import Family
from prefsweep.orchestrator.report.plot import Plot, Trace, plain, plot_layout, rounded
from prefsweep.sweeps.records import Status, TrialResult

MAX_CURVE_POINTS = 300
"""Points of a training curve; longer ones are thinned evenly."""
MAX_PLOT_POINTS, MIN_CURVE_POINTS = 15_000, 24
"""Points of all curves of a plot, shared out among many trials, but for a few of each."""
CURVES = {
    "loss": "Training loss",
    "rewards/margins": "Margin of the implicit rewards",
    "rewards/accuracies": "Accuracy of the implicit rewards",
    "grad_norm": "Gradient norm",
    "eval/reward_mean": "Held-out reward on the way",
    "eval/kl": "Held-out KL on the way, nats",
}
"""Key of a history record -> title of its plot; a plot without data is left out."""
DASHES = {
    "solid": "none",
    "dash": "5 3",
    "dot": "1.5 2.5",
    "dashdot": "5 2.5 1.5 2.5",
    "longdash": "9 3",
    "longdashdot": "9 2.5 1.5 2.5",
}
"""Line styles of a family's trials, by beta and seed: Plotly's name -> SVG's dash array."""


def training_plots(families: Sequence[Family]) -> list[Plot]:
    """One plot per logged quantity, one line per trial, whose meta is `trial:<trial_id>`."""
    hidden, styles = hidden_at_first(families), list(DASHES)
    num = sum(bool(member.history) for family in families for member in family.members)
    most = min(MAX_CURVE_POINTS, max(MIN_CURVE_POINTS, MAX_PLOT_POINTS // max(num, 1)))
    plots: list[Plot] = []
    for key, title in CURVES.items():
        data = [
            trace | {"visible": member.trial_id not in hidden}
            for family in families
            for rank, member in enumerate(family.members)
            if (points := _thinned(_series(member.history, key), most))
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
    """Ids of the failed trials, unless nothing else has a curve: one that diverged flattens all."""
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
    """(step, value) of the records that hold the key; a NaN stays, to leave a gap in the line."""
    return [
        (record["step"], value)
        for record in history
        if "step" in record and (value := record.get(key)) is not None
    ]


def _thinned(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points, evenly spaced, the first and the last among them."""
    if len(points) <= most:
        return points
    last = len(points) - 1
    return [points[i * last // (most - 1)] for i in range(most)]
