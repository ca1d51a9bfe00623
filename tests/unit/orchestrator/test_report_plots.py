"""The report's plots and pivot tables: hand-worked numbers, and what is drawn of what."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from prefsweep.orchestrator.report import page as page_module
from prefsweep.orchestrator.report.betas import losses_at_one_beta
from prefsweep.orchestrator.report.figures import MAX_CURVE_POINTS, comparison_plots, training_plots
from prefsweep.orchestrator.report.pivots import pivot_tables
from prefsweep.orchestrator.report.points import MAX_OUTLIERS, Box, box, box_plots
from prefsweep.orchestrator.report.style import COLOURS, NEUTRAL, families
from prefsweep.orchestrator.results.analysis import Comparison, compare, pool
from prefsweep.sweeps.grid import GridBlock, TrialSpec, expand
from prefsweep.sweeps.records import Metrics, Status, SweepResults, TrialResult

from .report_fixture import page, sweep_results, tiny


def test_every_plot_is_there_and_has_its_data() -> None:
    figures = page(sweep_results()).data["figures"]
    assert list(figures) == [
        "reward-kl",
        "reward-entropy",
        "reward-beta",
        "reward-at-beta",
        *(f"reward-box-f{index}" for index in range(6)),
        "curve-loss",
        "curve-rewards-margins",
        "curve-rewards-accuracies",
        "curve-grad_norm",
    ]
    names = {trace["name"] for trace in figures["reward-kl"]["data"]}
    losses = {"hinge", "sigmoid", "js_divergence", "forward_kl"}
    assert names == losses | {
        "alpha_divergence0.3",
        "alpha_divergence0.7",
        "untrained",
        "Pareto set",
    }
    assert {len(trace["x"]) for trace in figures["curve-rewards-margins"]["data"]} == {40}


def test_plotly_accepts_every_figure() -> None:
    for figure in page(sweep_results()).data["figures"].values():
        go.Figure(figure)


def test_scatter_shows_the_metrics_and_intervals() -> None:
    results = tiny({"reward_mean": 0.5}, [(1.0, 1.0), (3.0, 8.0)])
    bounded = results.results[2].metrics | {"reward_ci_low": 2.75, "reward_ci_high": 3.5}
    results.results[2] = replace(results.results[2], metrics=bounded)
    comparison = compare(results)
    figure = comparison_plots(comparison, families(comparison.trials), pool(comparison))[0].figure
    points = next(trace for trace in figure["data"] if "ids" in trace)
    assert (points["x"], points["y"]) == ([1.0, 8.0], [1.0, 3.0])
    assert points["text"] == ["0.1", "0.2"]
    assert points["ids"] == [result.trial_id for result in results.results[1:]]
    assert points["error_y"]["array"] == [0.0, 0.5]
    assert points["error_y"]["arrayminus"] == [0.0, 0.25]
    assert (figure["data"][-1]["x"], figure["data"][-1]["y"]) == ([0.0], [0.5])


def test_line_runs_through_the_means_over_seeds() -> None:
    results = tiny({"reward_mean": 0.0}, [(1.0, 1.0), (3.0, 3.0)])
    spec = TrialSpec(loss_type="sigmoid", beta=0.1, learning_rate=1e-5, seed=1)
    results.results[2] = replace(results.results[2], trial=spec)
    comparison = compare(results)
    groups = families(comparison.trials)
    line = next(
        trace
        for trace in comparison_plots(comparison, groups, pool(comparison))[0].figure["data"]
        if trace.get("meta") == "f0"
    )
    assert [family.label for family in groups] == ["sigmoid"]
    assert (line["x"], line["y"]) == ([2.0], [2.0])


def test_learning_rates_are_families_of_their_own() -> None:
    specs = expand([GridBlock(beta=(0.1, 1.0), learning_rate=(1e-5, 1e-4))], [0, 1])
    groups = families(sweep_results(specs).results[1:])
    assert [family.label for family in groups] == ["sigmoid-lr1e-05", "sigmoid-lr0.0001"]
    assert [len(family.members) for family in groups] == [4, 4]


def test_failed_trials_start_hidden_unless_there_are_no_others() -> None:
    def visible(results: SweepResults) -> set[bool]:
        plots = training_plots(families(results.results[1:]))
        return {trace["visible"] for trace in plots[0].figure["data"]}

    results = sweep_results()
    assert visible(results) == {True, False}
    failures = [r for r in results.results if r.status is Status.FAILED]
    assert visible(replace(results, results=[results.results[0], *failures])) == {True}


def test_evaluations_on_the_way_get_their_plots() -> None:
    results = tiny({}, [(1.0, 1.0)])
    history = [{"step": 10.0, "eval/reward_mean": 0.5}, {"step": 20.0, "eval/reward_mean": 0.75}]
    plots = training_plots(families([replace(results.results[1], history=history)]))
    assert [plot.id for plot in plots] == ["curve-eval-reward_mean"]
    trace = plots[0].figure["data"][0]
    assert (trace["x"], trace["y"]) == ([10.0, 20.0], [0.5, 0.75])


def test_long_curves_are_thinned_and_nan_is_a_gap() -> None:
    history = [{"step": float(step), "loss": 1.0} for step in range(1000)]
    history[0]["loss"] = float("nan")
    trial = replace(tiny({}, [(1.0, 1.0)]).results[1], history=history)
    trace = training_plots(families([trial]))[0].figure["data"][0]
    assert len(trace["x"]) == MAX_CURVE_POINTS
    assert (trace["x"][0], trace["x"][-1], trace["y"][0]) == (0.0, 999.0, None)


# --- trend, boxes, one beta, pivot tables --------------------------------------------------------


def trial(
    loss: str, beta: float, metrics: Metrics, rewards: tuple[float, ...] = (), seed: int = 0
) -> TrialResult:
    """A succeeded trial with these metrics, and one sample for each reward."""
    spec = TrialSpec(loss_type=loss, beta=beta, learning_rate=1e-5, seed=seed)
    name = f"{loss}-beta{beta:g}-seed{seed}"
    template = sweep_results().results[0].samples[0]
    drawn = [replace(template, reward=reward) for reward in rewards]
    return TrialResult(name, name, spec, Status.SUCCEEDED, metrics, samples=drawn)


def comparison_of(*trials: TrialResult, start: Metrics | None = None) -> Comparison:
    untrained = TrialResult("untrained", "untrained", None, Status.SUCCEEDED, start or {})
    return compare(SweepResults("made up", {}, [], [untrained, *trials], {}))


def entropy_lines(*points: tuple[float, float]) -> list[dict[str, Any]]:
    """The lines of the reward-entropy plot of one loss, whose trials have these (x, reward)."""
    trials = [
        trial("sigmoid", beta, {"reward_mean": reward, "entropy": entropy, "kl": 1.0})
        for beta, (entropy, reward) in enumerate(points, start=1)
    ]
    comparison = comparison_of(*trials, start={"reward_mean": 0.0, "kl": 0.0})
    plots = comparison_plots(comparison, families(comparison.trials), pool(comparison))
    figure = next(plot.figure for plot in plots if plot.id == "reward-entropy")
    return [trace for trace in figure["data"] if trace["mode"] == "lines"]


def test_trend_is_the_least_squares_line_over_the_range_of_the_trials() -> None:
    # About the means 5 and 2 the entropies are at -3, -1 and 4, the rewards at -2, 1 and 1.
    [line] = entropy_lines((2.0, 0.0), (4.0, 3.0), (9.0, 3.0))
    slope = (-3 * -2 + -1 * 1 + 4 * 1) / (9 + 1 + 16)
    assert line["x"] == [2.0, 9.0]
    assert line["y"] == pytest.approx([2 - 3 * slope, 2 + 4 * slope], rel=1e-5)


def test_two_trials_or_equal_entropies_have_no_trend() -> None:
    assert entropy_lines((2.0, 0.0), (4.0, 3.0)) == []
    assert entropy_lines((2.0, 0.0), (2.0, 3.0), (2.0, 4.0)) == []


def test_box_is_tukeys() -> None:
    values = [30.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert box(values) == Box(low=1.0, q1=3.0, median=5.0, q3=7.0, high=8.0, outliers=(30.0,))
    assert box([2.0]) == Box(2.0, 2.0, 2.0, 2.0, 2.0, ())
    assert box([]) is None


def test_many_outliers_are_thinned_and_the_extreme_ones_kept() -> None:
    drawn = box([0.0] * 1000 + [float(value) for value in range(1, 101)])
    assert drawn is not None
    assert len(drawn.outliers) == MAX_OUTLIERS
    assert (drawn.outliers[0], drawn.outliers[-1]) == (1.0, 100.0)


def test_box_panels_have_the_samples_by_beta_beside_the_untrained_policy() -> None:
    comparison = comparison_of(
        trial("sigmoid", 1.0, {}, (5.0,)),
        trial("sigmoid", 0.1, {}, (1.0, float("nan")), seed=0),
        trial("sigmoid", 0.1, {}, (3.0,), seed=1),
        trial("hinge", 0.5, {}, (7.0,)),
        replace(trial("ipo", 0.5, {}, (9.0,)), status=Status.FAILED),
    )
    start = replace(trial("sigmoid", 1.0, {}, (-1.0,)), trial=None)
    comparison = replace(comparison, untrained=start)
    panels = [plot for _, plot in box_plots(comparison, families(comparison.trials))]
    assert [panel.title for panel in panels] == ["sigmoid", "hinge"]
    untrained, sigmoid, means = panels[0].figure["data"]
    assert (untrained["x"], untrained["median"]) == (["untrained"], [-1.0])
    assert (sigmoid["x"], sigmoid["median"]) == (["0.1", "1"], [2.0, 5.0]), "seeds are pooled"
    assert (means["x"], means["ids"]) == ([], []), "no trial has a mean reward"
    assert all(panel.figure["layout"]["yaxis"]["range"] == [-1.4, 7.4] for panel in panels)


def test_every_box_has_a_point_or_plotly_would_not_draw_it() -> None:
    for figure in page(sweep_results()).data["figures"].values():
        for trace in figure["data"]:
            assert trace["type"] != "box" or all(trace["y"])


def test_one_beta_shows_its_losses_the_best_on_top() -> None:
    bounded: Metrics = {"reward_mean": 2.0, "reward_ci_low": 1.5, "reward_ci_high": 2.25}
    comparison = comparison_of(
        trial("hinge", 0.1, {"reward_mean": 1.0}),
        trial("sigmoid", 0.1, bounded),
        trial("ipo", 0.5, {"reward_mean": 9.0}),
        start={"reward_mean": 0.5},
    )
    shown = losses_at_one_beta(comparison, families(comparison.trials))
    assert shown is not None
    assert [choice["label"] for choice in shown.choices] == ["0.1", "0.5"]
    assert shown.choices[shown.chosen]["key"] == "beta:0.1", "the one with the most losses"
    figure = shown.plot.figure
    assert [trace["visible"] for trace in figure["data"]] == [True, True, False]
    assert figure["layout"]["yaxis"]["ticktext"] == ["hinge", "sigmoid"]
    assert figure["layout"]["yaxis"]["range"] == [-0.6, 1.6]
    assert [trace["y"] for trace in figure["data"]] == [[0.0], [1.0], [0.0]]
    assert figure["data"][1]["error_x"]["arrayminus"] == [0.5]
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [0.5]


def test_seeds_share_the_row_of_their_loss() -> None:
    comparison = comparison_of(
        *(trial("hinge", 0.1, {"reward_mean": float(seed)}, seed=seed) for seed in (0, 1)),
    )
    shown = losses_at_one_beta(comparison, families(comparison.trials))
    assert shown is not None
    [trace] = shown.plot.figure["data"]
    assert (trace["x"], trace["y"]) == ([0.0, 1.0], [0.125, -0.125])


def test_menu_of_betas_is_in_the_page_with_what_it_shows() -> None:
    shown = page(sweep_results())
    options = [attrs for tag, attrs in shown.tags if tag == "option"]
    choices = shown.data["choices"]["reward-at-beta"]
    assert [choice["label"] for choice in choices] == ["0.05", "0.1", "0.2", "0.5", "1"]
    assert [("selected" in attrs) for attrs in options[:5]] == [False, True, False, False, False]
    keys = {trace["meta"] for trace in shown.data["figures"]["reward-at-beta"]["data"]}
    assert keys == {choice["key"] for choice in choices}


def test_pivot_tables_have_a_row_a_loss_and_a_column_a_beta() -> None:
    metrics: Metrics = {"reward_mean": 1.25, "entropy": 5.0, "entropy_full": 6.0}
    bounds: Metrics = {"reward_ci_low": 1.0, "reward_ci_high": 1.5}
    comparison = comparison_of(
        trial("sigmoid", 0.1, metrics | bounds),
        trial("hinge", 1.0, {"reward_mean": 2.0, "entropy": 4.0}),
        replace(trial("hinge", 0.1, {}), status=Status.FAILED),
        start={"reward_mean": 0.5, "entropy": 5.5},
    )
    reward, entropy = pivot_tables(comparison, families(comparison.trials), pool(comparison))
    assert reward["betas"] == ["0.1", "1"]
    assert cells(reward) == {
        "untrained": ["0.500"],
        "sigmoid": ["1.250 [1.000, 1.500]", "\u2013"],
        "hinge": ["failed", "2.000"],
    }
    assert cells(entropy)["sigmoid"] == ["5.000 / 6.000", "\u2013"]


def test_pivot_tables_average_over_seeds() -> None:
    comparison = comparison_of(
        *(trial("hinge", 0.1, {"reward_mean": float(seed)}, seed=seed) for seed in (0, 1, 2)),
    )
    [reward] = pivot_tables(comparison, families(comparison.trials), pool(comparison))
    assert cells(reward)["hinge"] == ["1.000"]
    assert reward["caption"].endswith("Means over the seeds.")


def cells(table: dict[str, Any]) -> dict[str, list[str]]:
    """Row label -> its cells as a reader sees them."""

    def text(cell: dict[str, str | None]) -> str:
        return " ".join(part for part in (cell["text"], cell["small"]) if part)

    rows = {row["label"]: [text(cell) for cell in row["cells"]] for row in table["rows"]}
    return {"untrained": [text(table["untrained"])]} | rows


def test_page_says_whose_samples_the_untrained_policy_is_evaluated_by() -> None:
    sentence = "The untrained policy is evaluated by its own samples"
    assert sentence in page(sweep_results()).text
    assert sentence not in page(SweepResults("empty", {}, [], [], {})).text


# --- colours --------------------------------------------------------------------------------------


def test_colours_can_be_told_from_the_light_and_the_dark_ground() -> None:
    for ground in ("#ffffff", "#14171a"):
        assert all(_contrast(colour, ground) >= 3 for colour in (*COLOURS, NEUTRAL))
        assert ground in (Path(page_module.__file__).parent / "web/style.css").read_text()


def _contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two #rrggbb colours."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
