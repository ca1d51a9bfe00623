"""How plots look: colours and symbols of losses, the common layout, and places of labels.

A family is the trials that differ only in beta and seed: one colour, one symbol, one line. Colours
have a contrast of at least 3 to 1 to white and to the page's dark ground; symbols distinguish
families without colour. Colours of text and grid are left to the page's scripts, which know whether
the page is light or dark.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from prefsweep.sweeps.grid import TrialSpec, trial_names
from prefsweep.sweeps.records import TrialResult

COLOURS = (
    "#2f7ed8",
    "#d9690f",
    "#2a9658",
    "#c14a86",
    "#8563d6",
    "#a38200",
    "#158f9f",
    "#d8483f",
    "#93704f",
    "#5f7d2e",
)
NEUTRAL = "#7d8590"
"""Colour of the untrained policy."""
SYMBOLS = {
    "circle": "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z",
    "square": "M-4.5,-4.5h9v9h-9z",
    "diamond": "M0,-6L6,0L0,6L-6,0z",
    "triangle-up": "M0,-5.5L5.5,4.5L-5.5,4.5z",
    "triangle-down": "M0,5.5L5.5,-4.5L-5.5,-4.5z",
    "cross": "M-2,-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
    "hexagon": "M-5,-3L0,-6L5,-3L5,3L0,6L-5,3z",
}
"""Plotly symbol -> SVG path around (0, 0), for the legends."""


@dataclass(frozen=True, slots=True)
class Family:
    """The trials of one loss and divergence (and learning rate, if several are swept)."""

    key: str
    label: str
    colour: str
    symbol: str
    members: tuple[TrialResult, ...]
    """By beta, then seed."""


def families(trials: Sequence[TrialResult]) -> list[Family]:
    """Group all trials, finished or not, into families in grid order; so colours do not change."""
    groups: dict[TrialSpec, list[TrialResult]] = {}
    for result in trials:
        if result.trial is not None:
            groups.setdefault(_without_beta_and_seed(result.trial), []).append(result)
    labels = [name.replace("-beta1", "", 1) for name in trial_names(list(groups))]
    symbols = list(SYMBOLS)
    return [
        Family(
            key=f"f{index}",
            label=label,
            colour=COLOURS[index % len(COLOURS)],
            symbol=symbols[index % len(symbols)],
            members=tuple(sorted(members, key=_beta_and_seed)),
        )
        for index, (label, members) in enumerate(zip(labels, groups.values(), strict=True))
    ]


def beta_of(result: TrialResult) -> float:
    """The beta of a trial (the untrained policy has none)."""
    assert result.trial is not None
    return result.trial.beta


def _without_beta_and_seed(trial: TrialSpec) -> TrialSpec:
    return trial.model_copy(update={"beta": 1.0, "seed": 0})


def _beta_and_seed(result: TrialResult) -> tuple[float, int]:
    assert result.trial is not None
    return result.trial.beta, result.trial.seed


# --- plots ----------------------------------------------------------------------------------------


T = TypeVar("T")
Trace = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot of the page; `figure` has Plotly's `data` and `layout`."""

    id: str
    title: str
    caption: str
    figure: dict[str, Any]


def plot_layout(x_title: str, *, y_title: str = "Reward (mean)", height: int = 380) -> Trace:
    """The layout that all plots start from; `height` in pixels."""
    return {
        "height": height,
        "showlegend": False,
        "hovermode": "closest",
        "margin": {"l": 52, "r": 24, "t": 12, "b": 48},
        "xaxis": {"title": {"text": x_title}, "automargin": True, "zeroline": False},
        "yaxis": {"title": {"text": y_title}, "automargin": True, "zeroline": False},
    }


def rounded(values: Sequence[float]) -> list[float | None]:
    """Round to six significant digits; NaN and infinity become gaps."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def thinned(values: list[T], most: int) -> list[T]:
    """At most `most` of the values, evenly spaced, the first and the last among them."""
    if len(values) <= most:
        return values
    last = len(values) - 1
    return [values[i * last // (most - 1)] for i in range(most)]


def plain(text: str) -> str:
    """Escape HTML and Plotly templates in a text."""
    return html.escape(text, quote=False).replace("%{", "%\u200b{")


# --- labels ---------------------------------------------------------------------------------------


PLACES = {
    "top right": (1, 1),
    "bottom right": (1, -1),
    "top left": (-1, 1),
    "bottom left": (-1, -1),
    "top center": (0, 1.4),
    "bottom center": (0, -1.4),
    "middle right": (1.3, 0),
    "middle left": (-1.3, 0),
}
"""Plotly text position -> direction from the point, in order of preference."""
OFFSET, LINE_HEIGHT, CHARACTER_WIDTH, POINT = 9.0, 13.0, 7.0, 11.0
"""Sizes in pixels: distance of a label from its point, line height, character, point."""
MARGIN = 24.0
"""Pixels beyond the outermost points that a label may use."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A point with its label ("" for none); x and y in pixels, y upwards."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class _Rectangle:
    left: float
    right: float
    bottom: float
    top: float

    def overlap(self, other: "_Rectangle") -> float:
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)


def place_labels(points: Sequence[Labelled], width: float) -> list[str]:
    """Choose a position of PLACES for each label, from left to right, with the least overlap.

    Labels avoid the outside of the plot, which is `width` pixels wide. Sizes are approximate,
    because the browser decides the size of the plot.
    """
    outside = [
        _Rectangle(width + MARGIN, width + 1e4, -1e4, 1e4),
        _Rectangle(-1e4, -MARGIN, -1e4, 1e4),
    ]
    taken = [*outside, *(_around(p.x, p.y, POINT, POINT) for p in points)]
    places = [next(iter(PLACES))] * len(points)
    labelled = [index for index, point in enumerate(points) if point.text]
    for index in sorted(labelled, key=lambda index: (points[index].x, points[index].y)):
        boxes = {place: _label(points[index], direction) for place, direction in PLACES.items()}
        best = min(boxes, key=lambda place: sum(boxes[place].overlap(other) for other in taken))
        places[index] = best
        taken.append(boxes[best])
    return places


def in_pixels(values: Sequence[float], size: float) -> list[float]:
    """Scale values linearly to 0..`size` pixels, as an axis with automatic range does."""
    low, high = min(values), max(values)
    return [size * (value - low) / ((high - low) or 1.0) for value in values]


def _label(point: Labelled, direction: tuple[float, float]) -> _Rectangle:
    width = CHARACTER_WIDTH * len(point.text)
    x = point.x + direction[0] * (OFFSET + width / 2) if direction[0] else point.x
    return _around(x, point.y + direction[1] * OFFSET, width, LINE_HEIGHT)


def _around(x: float, y: float, width: float, height: float) -> _Rectangle:
    return _Rectangle(x - width / 2, x + width / 2, y - height / 2, y + height / 2)
