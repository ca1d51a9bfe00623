"""Converts results to what W&B logs: rows, tables, figures and configs, without secrets."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefsweep.orchestrator.state.sweep import Trial
from prefsweep.sweeps.records import EvaluationSample, SweepResults, TrialResult

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

STEP = "train/global_step"


def trial_config(trial: Trial, sweep: str) -> dict[str, object]:
    """A trial's config as a flat mapping, because W&B groups and filters by columns."""
    return {"sweep": sweep, "trial_id": trial.trial_id, **trial.spec.model_dump(mode="json")}


def history_row(record: Mapping[str, float | None]) -> dict[str, float]:
    """A record of metrics.jsonl with W&B names: STEP, and a prefix train/ or eval/ for others."""
    row: dict[str, float] = {}
    for key, value in record.items():
        if value is None:
            continue
        name = key if key.startswith(("train/", "eval/")) else f"train/{key}"
        row[STEP if key == "step" else name] = value
    return row


def summary(result: TrialResult) -> dict[str, float | str]:
    """Final metrics, training time and, for a failed trial, the error."""
    summary: dict[str, float | str] = {
        key: value for key, value in result.metrics.items() if value is not None
    }
    if result.train_seconds is not None:
        summary["train_seconds"] = result.train_seconds
    summary["status"] = str(result.status)
    if result.failure is not None:
        summary["error"] = result.failure.message
    return summary


Table = list[list[Any]]
"""Header first, then the rows."""


def sample_table(samples: Sequence[EvaluationSample]) -> Table:
    rows = [[sample.prompt, sample.text, sample.reward, sample.kl] for sample in samples]
    return [["prompt", "completion", "reward", "kl"], *rows]


def result_table(results: Sequence[TrialResult]) -> Table:
    """One row per result, including the untrained policy, with all metrics of any result."""
    from prefsweep.orchestrator.report.tables import TRIAL_COLUMNS

    metrics = list(dict.fromkeys(name for result in results for name in result.metrics))
    rows = [
        [
            *(result.trial_id, result.name, str(result.status)),
            *(getattr(result.trial, column, None) for column in TRIAL_COLUMNS),
            *(result.metrics.get(name) for name in metrics),
            *(result.train_seconds, result.failure.message if result.failure else None),
        ]
        for result in results
    ]
    ends = ["train_seconds", "error"]
    return [["trial_id", "name", "status", *TRIAL_COLUMNS, *metrics, *ends], *rows]


_SECRET_KEY = re.compile(r"(^|[_.-])(token|api_?key|password|secret|secret_key|access_key)$", re.I)
_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def without_secrets(value: object) -> Any:
    """JSON-like `value` with secrets replaced by ***: values of secret keys, logins in URLs."""
    if isinstance(value, Mapping):
        return {
            key: "***" if _SECRET_KEY.search(str(key)) and item else without_secrets(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return _URL_LOGIN.sub("***", value) if isinstance(value, str) else value


def grid_point_table(results: SweepResults) -> Table:
    """One row per grid point, seeds pooled, with its test against the best."""
    from prefsweep.orchestrator.results.analysis import compare, pool

    rows = [
        [
            *(variant.name, variant.num_seeds, variant.reward),
            *(variant.reward_interval or (None, None)),
            *(variant.gain, *(variant.gain_interval or (None, None))),
            *(variant.mean("win_rate"), variant.mean("kl"), variant.mean("entropy")),
            *(variant.standing and variant.standing.p_value, variant.indistinguishable),
        ]
        for variant in pool(compare(results)).variants
        if variant.finished
    ]
    intervals = [f"{name}{end}" for name in ("reward", "gain") for end in ("", "_low", "_high")]
    ends = ["win_rate", "kl", "entropy", "p_versus_best", "indistinguishable_from_best"]
    return [["grid_point", "seeds", *intervals, *ends], *rows]


def figures(results: SweepResults) -> Iterator[tuple[str, "Figure"]]:
    """The report's plots and their names in W&B."""
    import plotly.graph_objects as go

    from prefsweep.orchestrator.report.figures import comparison_plots, training_plots
    from prefsweep.orchestrator.report.points import box_plots
    from prefsweep.orchestrator.report.style import families
    from prefsweep.orchestrator.results.analysis import compare, pool

    comparison = compare(results)
    groups, pooled = families(comparison.trials), pool(comparison)
    boxes = [plot for _, plot in box_plots(comparison, groups)]
    for plot in (*comparison_plots(comparison, groups, pooled), *boxes, *training_plots(groups)):
        figure = go.Figure(plot.figure, skip_invalid=True)
        figure.update_layout(title={"text": plot.title}, showlegend=True)
        yield f"plots/{plot.id}", figure
