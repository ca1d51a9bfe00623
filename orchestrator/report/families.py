"""Trials that differ in beta and seed alone are a family: one colour, one symbol, one line.

Colours have a contrast of at least 3 to 1 to white and to the page's dark ground; symbols tell
families apart without colour.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
"""The untrained policy."""
SYMBOLS = {
    "circle": "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z",
    "square": "M-4.5,-4.5h9v9h-9z",
    "diamond": "M0,-6L6,0L0,6L-6,0z",
    "triangle-up": "M0,-5.5L5.5,4.5L-5.5,4.5z",
    "triangle-down": "M0,5.5L5.5,-4.5L-5.5,-4.5z",
    "cross": "M-2,-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
    "hexagon": "M-5,-3L0,-6L5,-3L5,3L0,6L-5,3z",
}
"""Plotly's name of a symbol -> its SVG path around (0, 0), for the legends."""


@dataclass(frozen=True, slots=True)
class Family:
    """One loss with its divergence (and learning rate, where several are swept)."""

    key: str
    label: str
    colour: str
    symbol: str
    members: tuple[TrialResult, ...]
    """By beta, then seed."""


def families(trials: Sequence[TrialResult]) -> list[Family]:
    """The families of all trials, in grid order; a trial keeps its colour whatever has finished."""
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
    """The beta of a trial; not for the untrained policy, which has none."""
    assert result.trial is not None
    return result.trial.beta


def _without_beta_and_seed(trial: TrialSpec) -> TrialSpec:
    return trial.model_copy(update={"beta": 1.0, "seed": 0})


def _beta_and_seed(result: TrialResult) -> tuple[float, int]:
    assert result.trial is not None
    return result.trial.beta, result.trial.seed
