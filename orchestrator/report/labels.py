"""Where the labels of a plot's points go, so that they lie on each other as little as possible.

Knows sizes in pixels only roughly: the browser decides how large a plot is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
"""Plotly's name of a place -> its direction from the point, by preference."""
OFFSET, LINE_HEIGHT, CHARACTER_WIDTH, POINT = 9.0, 13.0, 7.0, 11.0
"""Pixels: from a point to the near edge of its label, of text, and of a point."""
MARGIN = 24.0
"""Pixels beside the outermost points that a label may fill."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A point with its label, "" for none; x and y in pixels, upwards."""

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
    """A place of PLACES for every point's label, chosen one after the other from left to right.

    `width` is that of the plot: a label does not run out of it where it can help it.
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
    """Values spread over `size` pixels, as an axis without a fixed range spreads them."""
    low, high = min(values), max(values)
    return [size * (value - low) / ((high - low) or 1.0) for value in values]


def _label(point: Labelled, direction: tuple[float, float]) -> _Rectangle:
    width = CHARACTER_WIDTH * len(point.text)
    x = point.x + direction[0] * (OFFSET + width / 2) if direction[0] else point.x
    return _around(x, point.y + direction[1] * OFFSET, width, LINE_HEIGHT)


def _around(x: float, y: float, width: float, height: float) -> _Rectangle:
    return _Rectangle(x - width / 2, x + width / 2, y - height / 2, y + height / 2)
