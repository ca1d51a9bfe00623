"""variants: what a grid point's seeds say together, and which are not distinguishable."""

import re
from dataclasses import replace

import numpy as np
import pytest

from prefsweep.orchestrator.report.claims import limits
from prefsweep.orchestrator.report.findings import summary_markdown
from prefsweep.orchestrator.report.methods import bibtex, methods_paragraph, open_questions
from prefsweep.orchestrator.report.sources import BIBTEX, SOURCES
from prefsweep.orchestrator.report.style import families
from prefsweep.orchestrator.report.tables import trials_csv
from prefsweep.orchestrator.results.analysis import Pooled, compare, pool
from prefsweep.orchestrator.results.power import seed_advice
from prefsweep.sweeps.grid import LOSS_NAMES, GridBlock, expand, trial_names
from prefsweep.sweeps.records import (
    EvaluationSample,
    Status,
    SweepResults,
    TrialResult,
)
from prefsweep.workers.statistics import paired_metrics, pooled_interval, reward_metrics

NUM_PROMPTS = 40
GRID = (GridBlock(loss_type=("sigmoid", "hinge"), beta=(0.1, 1.0)),)
GAINS = {"sigmoid-beta0.1": 2.0, "sigmoid-beta1": 1.95, "hinge-beta0.1": 0.5, "hinge-beta1": 0.4}


def completions(rewards: np.ndarray) -> list[EvaluationSample]:
    return [
        EvaluationSample(f"p{i}", 0, f"prompt {i}", "x", "eos", 3, float(reward), 1.0, 2.0, -3.0)
        for i, reward in enumerate(rewards)
    ]


def sweep(seeds: tuple[int, ...], gains: dict[str, float] = GAINS) -> SweepResults:
    """Grid points that gain what GAINS says, on prompts that differ far more."""
    rng = np.random.default_rng(0)
    prompts = rng.normal(0, 3, NUM_PROMPTS)
    start = completions(prompts)
    results = [
        TrialResult("untrained", "untrained", None, Status.SUCCEEDED, reward_metrics(start)),
    ]
    results[0] = replace(results[0], samples=start)
    specs = expand(GRID, seeds)
    points = trial_names([spec.model_copy(update={"seed": 0}) for spec in specs[:: len(seeds)]])
    for index, (spec, name) in enumerate(zip(specs, trial_names(specs), strict=True)):
        gain = gains[points[index // len(seeds)]]
        samples = completions(prompts + gain + rng.normal(0, 0.5, NUM_PROMPTS))
        metrics = {"kl": gain, **reward_metrics(samples), **paired_metrics(samples, start)}
        trial_id = f"{index:012x}"
        results.append(
            TrialResult(trial_id, name, spec, Status.SUCCEEDED, metrics, samples=samples)
        )
    return SweepResults("demo", {}, [], results, {})


def pooled(results: SweepResults) -> Pooled:
    return pool(compare(results))


def test_trials_that_differ_in_their_seed_are_one_variant() -> None:
    found = pooled(sweep((0, 1, 2)))
    assert [v.name for v in found.variants] == list(GAINS)
    assert [v.num_seeds for v in found.variants] == [3, 3, 3, 3]
    assert (found.num_prompts, found.num_seeds) == (NUM_PROMPTS, 3)
    assert found.by_trial[f"{4:012x}"].name == "sigmoid-beta1"


def test_a_variants_reward_is_the_mean_over_prompts_and_seeds() -> None:
    results = sweep((0, 1))
    first = pooled(results).variants[0]
    x_SP = np.array([[s.reward or 0.0 for s in r.samples] for r in results.results[1:3]])
    assert first.reward == pytest.approx(x_SP.mean())
    low, high = first.reward_interval or (0.0, 0.0)
    alone = pooled_interval(x_SP.mean(0)[None]) or (0.0, 0.0)
    assert low <= alone[0] and high >= alone[1]
    assert first.gain == pytest.approx(2.0, abs=0.2)
    assert first.mean("kl") == 2.0


def test_one_seed_has_the_numbers_of_its_evaluation() -> None:
    results = sweep((0,))
    first, metrics = pooled(results).variants[0], results.results[1].metrics
    assert first.reward_interval == (metrics["reward_ci_low"], metrics["reward_ci_high"])


def test_gain_and_win_rate_intervals_hold_for_all_grid_points_at_once() -> None:
    """They are wider than those of one trial alone, and so is the summary's."""
    results = sweep((0,))
    for variant in pooled(results).variants:
        metrics = variant.finished[0].metrics
        for name, interval in (
            ("reward_gain", variant.gain_interval),
            ("win_rate", variant.win_interval),
        ):
            low, high = metrics[f"{name}_ci_low"] or 0.0, metrics[f"{name}_ci_high"] or 0.0
            assert interval is not None and interval[1] - interval[0] > 1.1 * (high - low)
    columns, first = (line.split(",") for line in trials_csv(results).splitlines()[:3:2])
    row = dict(zip(columns, first, strict=True))
    assert float(row["grid_point_gain_ci_low"]) < float(row["reward_gain_ci_low"])


def test_training_that_hurts_reads_as_such() -> None:
    results = sweep((0,), dict.fromkeys(GAINS, -1.5))
    found, summary = pooled(results), summary_markdown(results)
    assert found.untrained_is_best and found.versus_untrained is not None
    assert found.versus_untrained.distinguishable
    assert "Training lowered the reward: the untrained policy is the best" in summary
    assert "all of 4 grid points are significantly worse than the untrained" in summary
    assert "~" not in summary and "best trial" in summary
    rows = [line.split(",") for line in trials_csv(results).splitlines()]
    marks = [row[rows[0].index("indistinguishable_from_best")] for row in rows[1:]]
    assert marks == ["yes", "no", "no", "no", "no"]


def test_without_the_untrained_policys_samples_nothing_is_said_of_it() -> None:
    results = sweep((0,), dict.fromkeys(GAINS, -1.5))
    results.results[0] = replace(results.results[0], samples=[])
    found = pooled(results)
    assert found.untrained_is_best and found.versus_untrained is None
    assert "two-sided" not in summary_markdown(results)


def test_the_untrained_policy_may_lead_without_training_hurting() -> None:
    summary = summary_markdown(sweep((0,), dict.fromkeys(GAINS, -0.2)))
    assert "No trial has a higher reward than the untrained policy" in summary
    assert "are not significantly different from the untrained policy: " in summary


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_every_claim_names_what_varies(seeds: tuple[int, ...]) -> None:
    summary = summary_markdown(sweep(seeds))
    one = "For these weights (one training seed), over prompts: 1 of 3 other"
    several = "For these settings, over prompts and 3 seeds: 1 of 3 other"
    assert (one in summary, several in summary) == (len(seeds) == 1, len(seeds) == 3)
    alone = "With one training seed, nothing is shown about another run of the same settings"
    assert (alone in summary) == (len(seeds) == 1)


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_close_variants_are_not_told_apart_and_far_ones_are(seeds: tuple[int, ...]) -> None:
    found = pooled(sweep(seeds))
    assert found.best is not None and found.best.name.startswith("sigmoid")
    assert len(found.peers) == 1 and found.peers[0].name.startswith("sigmoid")
    assert found.untrained is not None and found.untrained.distinguishable


def test_a_sweep_that_gains_nothing_says_so() -> None:
    results = sweep((0,), dict.fromkeys(GAINS, 0.0))
    assert pooled(results).untrained is not None
    summary = summary_markdown(results)
    assert "These prompts do not show that training helped" in summary
    assert "3 of 3 other grid points are not significantly different" in summary


def test_failed_and_unfinished_seeds_are_counted_but_not_pooled() -> None:
    results = sweep((0, 1))
    lost = replace(results.results[1], status=Status.FAILED, metrics={}, samples=[])
    results.results[1] = lost
    first = pooled(results).variants[0]
    assert (first.num_seeds, len(first.members)) == (1, 2)
    assert first.reward == pytest.approx(results.results[2].metrics["reward_mean"])
    assert "| 1/2 |" in summary_markdown(results)


def test_a_lone_seed_is_as_unsure_as_the_other_grid_points_seeds_say() -> None:
    results = sweep((0, 1, 2))
    for index, result in enumerate(results.results[4:], start=4):
        shift = 4.0 * (index % 3)
        samples = [replace(s, reward=(s.reward or 0.0) + shift) for s in result.samples]
        results.results[index] = replace(result, samples=samples)
    for index in (2, 3):
        lost = replace(results.results[index], status=Status.FAILED, samples=[])
        results.results[index] = lost
    alone = pooled(results).variants[0]
    low, high = alone.reward_interval or (0.0, 0.0)
    metrics = results.results[1].metrics
    width = (metrics["reward_ci_high"] or 0.0) - (metrics["reward_ci_low"] or 0.0)
    assert alone.num_seeds == 1 and high - low > 3 * width


def test_prompts_that_one_policy_lacks_are_left_out_of_all() -> None:
    results = sweep((0,))
    results.results[2] = replace(results.results[2], samples=results.results[2].samples[:-5])
    assert pooled(results).num_prompts == NUM_PROMPTS - 5


def test_without_samples_nothing_is_marked() -> None:
    results = sweep((0,))
    bare = [replace(result, samples=[]) for result in results.results]
    found = pooled(replace(results, results=bare))
    assert found.best is not None and found.best.standing is None and not found.peers


def test_the_csv_has_the_grid_points_and_their_marks() -> None:
    rows = [line.split(",") for line in trials_csv(sweep((0, 1, 2))).splitlines()]
    columns = {name: [row[i] for row in rows[1:]] for i, name in enumerate(rows[0])}
    assert columns["grid_point"] == ["", *(name for name in GAINS for _ in range(3))]
    assert columns["grid_point_seeds"] == ["", *["3"] * 12]
    assert columns["indistinguishable_from_best"] == ["no", *["yes"] * 6, *["no"] * 6]
    assert columns["reward_gain"][0] == "" and float(columns["reward_gain"][1]) > 1.5


def test_the_summary_has_ten_lines_above_its_table() -> None:
    lines = summary_markdown(sweep((0, 1, 2))).splitlines()
    assert len(lines[: lines.index("", 2)]) <= 13
    assert "over 3 seeds" in lines[2] and "over untrained, by prompt" in lines[2]
    (line,) = [x for x in summary_markdown(sweep((0,))).splitlines() if x.startswith("- Best r")]
    assert "better on 100% [89%, 100%] of the prompts" in line
    assert "1 of 3" in lines[3]


# --- seeds that would tell more, prompts held out, methods ----------------------------------------


def test_one_seed_suggests_the_fewest_that_would_tell_settings_apart() -> None:
    """The gaps of GAINS are far beyond what seeds are assumed to move: two or three are enough."""
    found = pooled(sweep((0,)))
    advice = seed_advice(found)
    assert advice is not None and advice.assumed
    assert advice.num_seeds <= 3 and advice.num_told_apart >= 1 and advice.num_others == 3
    (line,) = [x for x in limits(found) if "With one training seed" in x]
    assert f"about {advice.num_seeds} seeds would tell the best from" in line
    assert seed_advice(found, num_seeds=3) is None


def test_seeds_that_move_more_need_more_of_them_or_none_suffice() -> None:
    results = sweep((0, 1))
    for index, result in enumerate(results.results[1:], start=1):
        shift = 5.0 * (index % 2)
        moved = (result.metrics["reward_mean"] or 0.0) + shift
        metrics = result.metrics | {"reward_mean": moved}
        results.results[index] = replace(result, metrics=metrics)
    assert seed_advice(pooled(results)) is None


def test_half_of_the_prompts_confirm_what_the_other_half_chose() -> None:
    results = replace(sweep((0,)), spec={"evaluation": {"confirm_best": True}})
    found = pooled(results)
    assert found.confirmed is not None and found.confirmed.num_prompts == NUM_PROMPTS // 2
    ids = sorted(f"p{i}" for i in range(NUM_PROMPTS))
    by_name = {r.name: {s.prompt_id: s.reward or 0.0 for s in r.samples} for r in results.results}
    means = {n: np.mean([by_name[n][p] for p in ids[::2]]) for n in GAINS}
    chosen = max(means, key=lambda name: means[name])
    assert found.best is not None and found.best.name == chosen
    expected = np.mean([by_name[chosen][p] for p in ids[1::2]])
    assert found.confirmed.reward == pytest.approx(expected)
    summary = summary_markdown(results)
    assert "On the 20 prompts that had no part in choosing the best: reward" in summary
    assert "expected to be about" not in summary
    assert "expected to be about" in summary_markdown(sweep((0,)))


def test_the_methods_paragraph_says_what_was_done_and_cites_it() -> None:
    for seeds in ((0,), (0, 1, 2)):
        results = sweep(seeds)
        comparison = compare(results)
        text = methods_paragraph(results, comparison, pool(comparison))
        assert f"4 grid points with {len(seeds)} training seed" in text
        assert ("not about the settings" in text) == (len(seeds) == 1)
        entries = bibtex(comparison, pool(comparison))
        for key in re.findall(r"\[(\w+\d{4}\w*)\]", text):
            assert f"{{{key}," in entries
        assert "rafailov2023dpo" in entries and "azar2024ipo" not in entries
    warped = replace(results, spec={"evaluation": {"top_p": 0.95, "temperature": 1.0}})
    text = methods_paragraph(warped, comparison, pool(comparison))
    assert "sampled with top_p 0.95; KL divergence and predictive entropy are those of" in text


def test_every_loss_has_an_entry() -> None:
    assert set(SOURCES) == set(LOSS_NAMES) and set(SOURCES.values()) <= set(BIBTEX)


def test_losses_with_other_learning_rates_and_a_best_at_the_edge_are_told() -> None:
    results = sweep((0,))
    [edge] = open_questions(families(compare(results).trials), pooled(results))
    assert edge.endswith("extend the grid downwards from beta 0.1")
    for index, result in enumerate(results.results):
        if result.trial is not None and result.trial.loss_type == "hinge":
            trial = result.trial.model_copy(update={"learning_rate": 1e-3})
            results.results[index] = replace(result, trial=trial)
    told, _ = open_questions(families(compare(results).trials), pooled(results))
    assert told.startswith("Losses were trained at different learning rates (sigmoid at")
    assert "hinge at 0.001" in told


def test_few_prompts_that_tell_anything_make_intervals_approximate() -> None:
    results = sweep((0,))
    for index, result in enumerate(results.results):
        flat = [replace(s, reward=0.0) if i > 5 else s for i, s in enumerate(result.samples)]
        results.results[index] = replace(result, samples=flat)
    assert any("only 6 prompts of 40 tell anything" in line for line in limits(pooled(results)))
    assert not any("approximate" in line for line in limits(pooled(sweep((0,)))))
