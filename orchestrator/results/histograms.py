"""The preference data in the store -> the distributions that the report draws of it.

Reads only the columns it needs, and no text. Makes no judgement of the data.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.sweeps.records import DataFacts, Histogram

NUM_BINS = 40


def read_data_facts(sweep: Sweep) -> DataFacts:
    """Distributions of what is finished."""
    scored = _columns(sweep, "scores", ("score",))
    pairs = _columns(sweep, "pairs", ("chosen_score", "rejected_score"))
    tokens = _columns(sweep, "reference", ("chosen_ids", "rejected_ids"))
    scores: dict[str, np.ndarray] = {}
    margins = np.empty(0)
    if scored is not None:
        scores["all"] = _numbers(scored["score"])
    if pairs is not None:
        chosen, rejected = _numbers(pairs["chosen_score"]), _numbers(pairs["rejected_score"])
        scores |= {"chosen": chosen, "rejected": rejected}
        margins = chosen - rejected if len(chosen) == len(rejected) else margins
    lengths = (
        {}
        if tokens is None
        else {side: _lengths(tokens[f"{side}_ids"]) for side in ("chosen", "rejected")}
    )
    return DataFacts(
        scores=histogram(scores),
        margins=histogram({"pairs": margins}),
        lengths=histogram(lengths, whole=True),
    )


def histogram(series: Mapping[str, np.ndarray], *, whole: bool = False) -> Histogram | None:
    """At most NUM_BINS bins of equal width over all finite values of all series; None for none.

    `whole` keeps the edges halfway between whole numbers, so that no bin holds more of them.
    """
    finite = {name: values[np.isfinite(values)] for name, values in series.items()}
    drawn = {name: values for name, values in finite.items() if len(values)}
    if not drawn:
        return None
    low = min(float(values.min()) for values in drawn.values())
    high = max(float(values.max()) for values in drawn.values())
    edges = _whole_edges(low, high) if whole else _edges(low, high)
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in drawn.items()}
    return Histogram(edges=edges, counts=counts)


def _edges(low: float, high: float) -> list[float]:
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, NUM_BINS + 1).tolist()


def _whole_edges(low: float, high: float) -> list[float]:
    width = -(-(int(high - low) + 1) // NUM_BINS)
    num = -(-(int(high - low) + 1) // width)
    return [low - 0.5 + width * index for index in range(num + 1)]


def _columns(sweep: Sweep, stage: str, names: Sequence[str]) -> pa.Table | None:
    if stage not in sweep.stages or sweep.store.manifest(sweep.path(stage)) is None:
        return None
    return sweep.store.read_columns(sweep.path(stage), names)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Floats; null, which stands for no score, is NaN."""
    return pc.fill_null(pc.cast(column, pa.float64()), float("nan")).to_numpy()


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    return pc.call_function("list_value_length", [column]).to_numpy().astype(float)
