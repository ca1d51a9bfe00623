"""The report's smaller parts: labels, data, cost, provenance; hand-worked numbers."""

from dataclasses import replace

import numpy as np
import pytest

from prefsweep.orchestrator.report.figures import (
    MAX_CURVE_POINTS,
    MAX_PLOT_POINTS,
    MIN_CURVE_POINTS,
    comparison_plots,
    training_plots,
)
from prefsweep.orchestrator.report.findings import headline
from prefsweep.orchestrator.report.page import page_html
from prefsweep.orchestrator.report.points import MAX_BOXES, are_thinned, box_plots
from prefsweep.orchestrator.report.sections import cost, data_plots, dropped, gpu_hours, provenance
from prefsweep.orchestrator.report.style import PLACES, Labelled, families, place_labels
from prefsweep.orchestrator.report.tables import trial_table
from prefsweep.orchestrator.results.analysis import compare, pool
from prefsweep.orchestrator.results.results import NUM_BINS, histogram
from prefsweep.orchestrator.text import show
from prefsweep.sweeps.grid import GridBlock, expand
from prefsweep.sweeps.load import load_spec
from prefsweep.sweeps.records import DataFacts, Histogram, SweepResults, TrialResult

from .report_fixture import GRID, page, sweep_results, tiny
from .report_hostile import MARKUP, hostile_results

# --- labels --------------------------------------------------------------------------------------


def test_a_lone_label_is_at_the_top_right() -> None:
    assert place_labels([Labelled(50.0, 50.0, "0.1")], 100.0) == ["top right"]


def test_labels_of_one_place_go_four_ways() -> None:
    places = place_labels([Labelled(50.0, 50.0, "0.1")] * 4, 100.0)
    assert places == list(PLACES)[:4]


def test_label_at_the_right_edge_goes_left() -> None:
    assert place_labels([Labelled(100.0, 50.0, "untrained")], 100.0) == ["top left"]


def test_label_avoids_a_point_without_one() -> None:
    points = [Labelled(50.0, 50.0, "0.1"), Labelled(62.0, 60.0, "")]
    assert place_labels(points, 200.0)[0] == "bottom right"


# --- data ----------------------------------------------------------------------------------------


def test_histogram_counts_every_finite_value_once() -> None:
    made = histogram(
        {"a": np.array([0.0, 1.0, float("nan")]), "b": np.array([2.0]), "c": np.array([])}
    )
    assert made is not None
    assert (made.edges[0], made.edges[-1], len(made.edges)) == (0.0, 2.0, NUM_BINS + 1)
    assert {name: sum(counts) for name, counts in made.counts.items()} == {"a": 2, "b": 1}
    assert made.counts["b"][-1] == 1, "the last edge is inside"


def test_histogram_of_whole_numbers_has_as_many_of_them_in_every_bin() -> None:
    made = histogram({"tokens": np.arange(1.0, 91.0)}, whole=True)
    assert made is not None
    assert made.edges[:2] == [0.5, 3.5]
    assert set(made.counts["tokens"]) == {3}


def test_histogram_of_nothing_is_none_and_of_one_value_a_bin() -> None:
    assert histogram({"a": np.array([float("nan")])}) is None
    made = histogram({"a": np.array([2.0, 2.0])})
    assert made is not None
    assert (made.edges[0], made.edges[-1], max(made.counts["a"])) == (1.5, 2.5, 2)


def test_histograms_are_drawn_where_they_are() -> None:
    results = sweep_results()
    assert data_plots(results) == []
    lengths = Histogram([0.5, 1.5, 2.5], {"chosen": [3, 4], "rejected": [5, 6]})
    [plot] = data_plots(replace(results, data=DataFacts(lengths=lengths)))
    chosen, rejected = plot.figure["data"]
    assert (chosen["x"], chosen["y"], rejected["y"]) == ([1.0, 2.0], [3, 4], [5, 6])


def test_what_was_dropped_has_its_share_of_the_candidates() -> None:
    shown = dropped(sweep_results())
    assert shown["rows"][1] == {
        "stage": "pairs",
        "reason": "tied scores",
        "count": "12",
        "share": "1.3% of 923",
    }
    stages = [replace(sweep_results().stages[6], notes={"dropped: same text": 0.0})]
    nothing = dropped(replace(sweep_results(), stages=stages))
    assert nothing == {"rows": [], "none": ["same text"]}


# --- cost ----------------------------------------------------------------------------------------


def timed(*seconds: tuple[float, float, bool]) -> SweepResults:
    """Trials that took (training, evaluation) seconds, some found in the store."""
    results = tiny({"reward_mean": 0.0}, [(1.0, 1.0)] * len(seconds))
    trials = [
        replace(result, train_seconds=train, evaluate_seconds=evaluate, found=found)
        for result, (train, evaluate, found) in zip(results.results[1:], seconds, strict=True)
    ]
    return replace(results, results=[results.results[0], *trials])


def test_bars_are_shares_of_the_longest() -> None:
    group = cost(timed((6.0, 2.0, False), (3.0, 1.0, False)))["groups"][-1]
    widths = [(bar["width"], bar["evaluation"]) for bar in group["bars"]]
    assert widths == [(75.0, 25.0), (37.5, 12.5)]


def test_found_trials_are_what_the_store_saved() -> None:
    totals = {
        each["label"]: each for each in cost(timed((60.0, 3.0, True), (5.0, 1.0, False)))["totals"]
    }
    saved = totals["Saved by reuse"]
    assert (saved["value"], saved["detail"]) == ("1 min 03 s", "1 trial reused from other sweeps")


@pytest.mark.parametrize(("share", "hours"), [("auto", 2.0), (0.5, 1.0)])
def test_gpu_hours_are_seconds_times_the_share_of_a_gpu(share: object, hours: float) -> None:
    results = timed((3600.0, 0.0, False), (1800.0, 1800.0, False))
    assert gpu_hours(results) is None
    trials = [replace(r, metrics=r.metrics | {"gpu_memory_gib": 3.0}) for r in results.results[1:]]
    spec: dict[str, object] = {"resources": {"gpus_per_trial": share}}
    assert gpu_hours(replace(results, results=trials, spec=spec)) == hours


# --- provenance, table ---------------------------------------------------------------------------


def test_provenance_names_what_is_not_a_default_and_every_seed() -> None:
    spec = load_spec("quickstart", ["training.max_steps=7", "seeds=[3, 4]"])
    shown = provenance(replace(sweep_results(), spec=spec.model_dump(mode="json")))
    changed = {each["field"]: each["value"] for each in shown["changed"]}
    assert changed["training.max_steps"] == "7"
    assert "training.eos" not in changed, "it is the default"
    seeds = {each["field"]: each["value"] for each in shown["seeds"]}
    assert seeds["seeds"] == "[3, 4]"
    assert {"generation.seed", "pairs.seed"} <= set(seeds)


def test_table_has_columns_for_what_the_grid_varies() -> None:
    results = sweep_results(expand([GridBlock(beta=(0.1, 1.0), learning_rate=(1e-5,))], [0, 1]))
    comparison = compare(results)
    table = trial_table(comparison, families(comparison.trials), pool(comparison))
    assert list(table["grid"]) == ["beta", "seed"]
    assert [cell["text"] for cell in table["rows"][1]["grid"]] == ["0.1", "0"]
    assert table["rows"][1]["id"] == results.results[1].trial_id


def test_page_shows_the_commands_and_the_quarantined_prompts_as_text() -> None:
    command = "prefsweep run quickstart 'grid=<b>'"
    quarantined = {"completions": {"ab12": "<script>bad</script> prompt"}}
    shown = page(replace(sweep_results(), commands=[command], quarantined=quarantined))
    assert command in shown.text
    assert "completions ab12 <script>bad</script> prompt" in shown.text
    assert "Quarantined prompts" not in page(sweep_results()).text


# --- pooled over seeds ---------------------------------------------------------------------------


def replicated() -> SweepResults:
    return sweep_results(expand(GRID[:1], [0, 1, 2]), num_prompts=30)


def test_headline_quotes_grid_points_not_their_luckiest_seeds() -> None:
    results = replicated()
    comparison, pooled = compare(results), pool(compare(results))
    assert pooled.best is not None and pooled.best.reward is not None
    shown = headline(results, comparison, families(comparison.trials), pooled)
    best = next(tile for tile in shown["tiles"] if tile["label"] == "Best reward")
    assert best["name"] == pooled.best.name and "seed" not in best["name"]
    assert best["value"] == show(pooled.best.reward)
    assert best["ids"].split() == [result.trial_id for result in pooled.best.finished]
    assert best["details"][0].endswith(", 3 seeds")
    assert "n = 30 prompts; those of gains" in shown["method"]
    assert "at once; significance: max-t" in shown["method"]


def test_slider_chooses_among_grid_points_and_the_untrained_policy() -> None:
    start, *points = page(replicated()).data["competing"]
    assert (start["ids"], start["kl"]) == ("", 0.0)
    assert len(points) == 6
    assert {len(point["ids"].split()) for point in points} == {3}


def test_table_marks_the_best_and_what_is_not_distinguishable_from_it() -> None:
    results = replicated()
    comparison, pooled = compare(results), pool(compare(results))
    rows = trial_table(comparison, families(comparison.trials), pooled)["rows"]
    marks = {row["id"]: [mark["text"] for mark in row["marks"]] for row in rows}
    assert marks["untrained"] == []
    for variant in pooled.variants:
        for member in variant.finished:
            assert ("best" in marks[member.trial_id]) == (variant is pooled.best)
            assert ("\u2248 best" in marks[member.trial_id]) == (variant in pooled.peers)


def test_mean_of_seeds_has_the_interval_of_all_of_them() -> None:
    results = replicated()
    comparison, pooled = compare(results), pool(compare(results))
    plots = comparison_plots(comparison, families(comparison.trials), pooled)
    means = [trace for trace in plots[0].figure["data"] if " " in "".join(trace.get("ids", []))]
    assert len(means) == 2
    for trace in means:
        variant = pooled.by_trial[trace["ids"][0].split()[0]]
        assert variant.reward_interval is not None
        high = variant.reward_interval[1] - trace["y"][0]
        assert trace["error_y"]["array"][0] == pytest.approx(high, abs=1e-4)


# --- seeds, many trials, hostile texts -----------------------------------------------------------


def test_seeds_are_small_points_and_their_mean_has_the_label() -> None:
    results = tiny({"reward_mean": 0.0}, [(1.0, 1.0), (3.0, 3.0)])
    seeds = [seeded(result, seed) for seed, result in enumerate(results.results[1:])]
    comparison = compare(replace(results, results=[results.results[0], *seeds]))
    data = comparison_plots(comparison, families(comparison.trials), pool(comparison))[0].figure[
        "data"
    ]
    points, mean = [trace for trace in data if trace.get("meta") == "f0" and "ids" in trace]
    assert (points["x"], "text" in points) == ([1.0, 3.0], False)
    assert (mean["x"], mean["y"], mean["text"]) == ([2.0], [2.0], ["0.1"])
    assert mean["ids"] == [" ".join(result.trial_id for result in seeds)]
    assert mean["marker"]["size"] > points["marker"]["size"]
    assert mean["marker"]["color"] == points["marker"]["color"]


def seeded(result: TrialResult, seed: int) -> TrialResult:
    assert result.trial is not None
    return replace(result, trial=result.trial.model_copy(update={"beta": 0.1, "seed": seed}))


def test_pages_of_fifty_trials_are_under_five_megabytes() -> None:
    betas = tuple(0.01 * 1.2**n for n in range(13))
    grid = [block.model_copy(update={"beta": betas}) for block in GRID[:2]]
    results = sweep_results(expand(grid, [0]), num_prompts=60)
    long = [{**results.results[1].history[0], "step": float(step)} for step in range(2000)]
    trials = [replace(result, history=long) for result in results.results[1:]]
    assert len(trials) == 52
    html = page_html(replace(results, results=[results.results[0], *trials]))
    assert len(html.encode()) < 5_000_000


def test_many_curves_share_the_points_of_a_plot() -> None:
    [trial] = tiny({}, [(1.0, 1.0)]).results[1:]
    history = [{"step": float(step), "loss": 1.0} for step in range(1000)]

    def points(num: int) -> int:
        trials = [replace(seeded(trial, n), trial_id=str(n), history=history) for n in range(num)]
        return len(training_plots(families(trials))[0].figure["data"][0]["x"])

    assert (points(1), points(100)) == (MAX_CURVE_POINTS, MAX_PLOT_POINTS // 100)
    assert points(2000) == MIN_CURVE_POINTS


def test_of_many_betas_some_boxes_are_drawn_the_first_and_last_among_them() -> None:
    betas = tuple(float(n) for n in range(1, 41))
    results = sweep_results(expand([GridBlock(beta=betas, learning_rate=(1e-5,))], [0]))
    comparison = compare(results)
    groups = families(comparison.trials)
    assert are_thinned(groups)
    [(_, plot)] = box_plots(comparison, groups)
    drawn = plot.figure["data"][1]["x"]
    assert (len(drawn), drawn[0], drawn[-1]) == (MAX_BOXES, "1", "40")
    assert plot.figure["data"][2]["x"] == drawn, "a mean for each box"


def test_budget_is_shown_rounded_up_so_that_its_trial_is_within() -> None:
    results = tiny({"reward_mean": 0.0}, [(1.0, 1.0), (2.0, 4.3711), (3.0, 9.0)])
    comparison = compare(results)
    shown = headline(results, comparison, families(comparison.trials), pool(comparison))["within"]
    assert (shown["budget"], shown["name"]) == ("4.38", "sigmoid-beta0.2")


def test_hostile_texts_are_no_markup_of_the_page() -> None:
    shown = page(hostile_results())
    assert not [tag for tag, _ in shown.tags if tag in ("img", "iframe", "object", "embed")]
    assert len(shown.raw["script"]) == 3
    assert shown.text.count(MARKUP) >= 5
