"""What every plot of the page is: Plotly's `data` and `layout`, dictionaries that become JSON.

Colours of text and grid are left to the page's scripts, which know whether it is light or dark.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Trace = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot of the page; `figure` has Plotly's `data` and `layout`."""

    id: str
    title: str
    caption: str
    figure: dict[str, Any]


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
