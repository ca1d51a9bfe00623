"""The report: exact files, hand-worked comparisons, hostile texts, sweeps that are not whole."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from prefsweep.orchestrator.report.figures import MAX_LABELS
from prefsweep.orchestrator.report.findings import summary_markdown
from prefsweep.orchestrator.report.page import embedded_json, page_html
from prefsweep.orchestrator.report.policies import MAX_PROMPTS, sample_data
from prefsweep.orchestrator.report.tables import METRIC_COLUMNS, trials_csv
from prefsweep.orchestrator.report.write import write_report
from prefsweep.orchestrator.results.analysis import Point, best, best_within, compare, pareto, pool
from prefsweep.orchestrator.text import duration, show
from prefsweep.sweeps.grid import GridBlock, TrialSpec, expand
from prefsweep.sweeps.records import Failure, Metrics, Status, SweepResults, TrialResult

from .report_fixture import PROMPTS, Page, failed, page, sweep_results, tiny

# --- frontier ------------------------------------------------------------------------------------

A, B, C, D = Point("a", 1.0, 1.0), Point("b", 3.0, 4.0), Point("c", 2.0, 5.0), Point("d", 3.0, 2.0)


def test_best_is_the_highest_reward_and_of_equal_ones_the_lower_kl() -> None:
    assert best([A, B, C, D]) == D
    assert best([]) is None


def test_budget_includes_its_edge() -> None:
    assert best_within([A, B, C], 4.0) == B
    assert best_within([A, B, C], 3.9) == A
    assert best_within([A, B, C], 0.5) is None


def test_pareto_leaves_out_what_another_beats() -> None:
    assert pareto([C, B, A]) == [A, B]
    assert pareto([A, B, C, D]) == [A, D]


def test_pareto_keeps_equal_points() -> None:
    twin = replace(A, trial_id="twin")
    assert pareto([A, twin]) == [A, twin]


def test_pareto_at_equal_kl_keeps_the_higher_reward() -> None:
    assert pareto([Point("low", 1.0, 1.0), Point("high", 2.0, 1.0)]) == [Point("high", 2.0, 1.0)]


def test_trial_below_the_untrained_policy_is_not_in_the_pareto_set() -> None:
    pooled = pool(compare(tiny({"reward_mean": 0.5, "kl": 0.0}, [(0.4, 1.0), (0.9, 2.0)])))
    assert [variant.name for variant in pooled.pareto] == ["sigmoid-beta0.2"]


def test_budget_is_the_median_kl_of_succeeded_trials() -> None:
    pooled = pool(compare(tiny({"reward_mean": 0.0}, [(1.0, 1.0), (3.0, 8.0), (2.0, 3.0)])))
    assert pooled.budget == 3.0
    assert pooled.best is not None and pooled.best.reward == 3.0
    assert pooled.best_within is not None and pooled.best_within.reward == 2.0


def test_nan_and_failed_trials_do_not_compete() -> None:
    results = tiny({"reward_mean": 0.0}, [(1.0, 1.0), (float("nan"), 2.0), (9.0, 3.0)])
    broken = replace(results.results[3], status=Status.FAILED)
    pooled = pool(compare(replace(results, results=[*results.results[:3], broken])))
    assert pooled.best is pooled.variants[0]
    assert pooled.budget is None


# --- trials.csv, summary.md ----------------------------------------------------------------------


def test_csv_is_exact() -> None:
    results = tiny({"reward_mean": 0.1 + 0.2, "kl": 0.0}, [(1.0, 1e-7)])
    trial = results.results[1]
    spec = TrialSpec(
        loss_type="sigmoid",
        f_divergence_type="alpha_divergence",
        alpha=0.3,
        beta=0.1,
        learning_rate=1e-5,
        seed=2,
    )
    failure = Failure("transient", "=cmd()\nlost, twice", advice="wait")
    name, status = "alpha_divergence0.3-beta0.1", Status.FAILED
    bad = replace(trial, trial_id=f"{2:012x}", name=name, trial=spec, status=status)
    bad = replace(bad, metrics={}, failure=failure)
    csv = trials_csv(replace(results, results=[*results.results, bad]))
    assert csv == (
        "trial_id,name,status,loss_type,f_divergence_type,alpha,beta,learning_rate,seed,"
        "reward_mean,reward_std,reward_ci_low,reward_ci_high,win_rate,win_rate_ci_low,"
        "win_rate_ci_high,entropy,entropy_full,predictive_entropy,kl,distinct_1,distinct_2,"
        "ref_perplexity,completion_tokens,margin_test,accuracy_test,train_seconds,error,"
        "reward_gain,reward_gain_ci_low,reward_gain_ci_high,num_prompts,num_completions,"
        "grid_point,grid_point_seeds,grid_point_reward,grid_point_ci_low,grid_point_ci_high,"
        "p_versus_best,indistinguishable_from_best,"
        "grid_point_gain,grid_point_gain_ci_low,grid_point_gain_ci_high,"
        "grid_point_win_rate,grid_point_win_rate_ci_low,grid_point_win_rate_ci_high,"
        "grid_point_kl,grid_point_kl_ci_low,grid_point_kl_ci_high,frontier_probability,"
        "sample_win_rate,sample_win_rate_ci_low,sample_win_rate_ci_high,"
        "distinct_1_per_200,distinct_2_per_200\n"
        "untrained,untrained,succeeded,,,,,,,0.30000000000000004,,,,,,,,,,0.0,,,,,,,,"
        f"{',' * 27}\n"
        "000000000001,sigmoid-beta0.1,succeeded,sigmoid,reverse_kl,,0.1,1e-05,0,"
        "1.0,,,,,,,,,,1e-07,,,,,,,2.5,,,,,,,sigmoid-beta0.1,1,1.0,,,,,,,,,,,1e-07,,,,,,,,\n"
        "000000000002,alpha_divergence0.3-beta0.1,failed,sigmoid,alpha_divergence,0.3,0.1,1e-05,2,"
        f'{"," * len(METRIC_COLUMNS)}2.5,"\'=cmd() lost, twice",,,,,,'
        "alpha_divergence0.3-beta0.1,0,,,,,,,,,,,,,,,,,,,,\n"
    )


def test_csv_begins_with_the_untrained_policy_even_if_it_is_not_evaluated() -> None:
    results = sweep_results()
    rows = trials_csv(replace(results, results=results.results[1:])).splitlines()
    assert rows[1].startswith("untrained,untrained,pending,")
    assert len(rows) == 14


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t="])
def test_csv_never_holds_a_formula(start: str) -> None:
    results = tiny({}, [(1.0, 1.0)])
    trial = replace(results.results[1], name=f"{start}1+1")
    row = trials_csv(replace(results, results=[trial])).splitlines()[2]
    assert row.split(",")[1].startswith("'")


def test_equal_results_give_equal_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_report(sweep_results(), tmp_path / folder)
    for name in ("index.html", "trials.csv", "samples.parquet", "summary.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "index.html",
        "samples.parquet",
        "summary.md",
        "trials.csv",
    ]


def test_summary_names_the_best_the_budget_and_the_counts() -> None:
    results = tiny({"reward_mean": 0.5}, [(1.0, 1.0), (3.0, 8.0), (2.0, 3.0)])
    lines = summary_markdown(results).splitlines()
    assert lines[2:9] == [
        "- Best reward: `sigmoid-beta0.2`, reward 3.000 at KL 8.000 nats",
        "- Best within a KL of 3.000 nats (the median): `sigmoid-beta0.3`, "
        "reward 2.000 at KL 3.000 nats",
        "- Pareto set (reward up, KL down): "
        "`sigmoid-beta0.1`, `sigmoid-beta0.3`, `sigmoid-beta0.2`",
        "- Untrained policy: reward 0.500",
        "- Trials: 3 succeeded, 0 failed, 0 not run (of 3)",
        "- Evaluation: nothing evaluated yet",
        "- Time: 0.0 s in the stages before training, 7.5 s in training",
    ]


def test_summary_says_where_the_best_is_not_told_apart() -> None:
    summary = summary_markdown(sweep_results(num_prompts=2))
    assert "These prompts do not show that training helped" in summary
    assert (
        "- For these weights (one training seed), over prompts: 10 of 10 other grid points "
        "are not significantly different from the best: "
        "`hinge-beta0.05`, `hinge-beta0.2`" in summary
    )
    assert "60 held-out prompts x 2 samples; 95% intervals: studentized bootstrap" in summary
    assert "familywise error rate 5%" in summary


# --- the page ------------------------------------------------------------------------------------


def test_page_embeds_plotly_once_and_loads_nothing(tmp_path: Path) -> None:
    write_report(sweep_results(), tmp_path)
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert html.count("plotly.js (cartesian - minified) v") == 1
    own = Page(re.sub(r"<script>/\*\*\n\* plotly\.js .*?</script>", "", html, flags=re.DOTALL))
    loading = {"src", "srcset", "href", "data", "action", "poster", "background", "xlink:href"}
    loaded = [attrs[name] or "" for _, attrs in own.tags for name in loading & set(attrs)]
    assert [target for target in loaded if not target.startswith("#")] == []
    assert not re.search(r"url\(|@import|https?://", " ".join(own.raw["style"]))
    assert not re.search(r"https?://|fetch\(|XMLHttp|innerHTML", own.raw["script"][-1])


def test_page_forbids_all_requests() -> None:
    policy = next(
        attrs["content"] or ""
        for tag, attrs in page(sweep_results()).tags
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


# --- hostile texts -------------------------------------------------------------------------------


def test_samples_arrive_unchanged_and_cannot_leave_their_script() -> None:
    shown = page(sweep_results())
    assert [prompt["text"] for prompt in shown.data["samples"]["prompts"]] == list(PROMPTS)
    assert len(shown.raw["script"]) == 3
    assert "alert(1)" not in shown.text


def test_embedded_json_holds_no_markup_and_reads_back() -> None:
    value = "</script><!-- & \u2028\u2029 \u202e\u200b \x00 é"
    text = str(embedded_json(value))
    assert not set(text) & set("<>&\u2028\u2029\x00")
    assert json.loads(text) == value


def test_names_and_errors_are_text_everywhere() -> None:
    evil = "<img src=x onerror=alert(1)>\"'%{x}"
    results = sweep_results()
    index = next(i for i, r in enumerate(results.results) if r.failure is not None)
    failure = Failure("deterministic", evil, f"\x1b[31m{evil}\x1b[0m", evil, log_path=evil)
    results.results[index] = replace(results.results[index], name=evil, failure=failure)
    results.results[1] = replace(results.results[1], name=evil)
    stages = [replace(results.stages[0], name=evil, notes={evil: 1.5})]
    hostile = replace(
        results, sweep=evil, stages=stages, spec={evil: evil}, environment={"a": evil}
    )
    shown = page(hostile)
    assert not [tag for tag, _ in shown.tags if tag == "img"]
    assert f"Log: {evil}" in shown.text
    assert shown.text.count(evil) >= 9
    assert "\x1b" not in page_html(hostile)
    for figure in shown.data["figures"].values():
        assert "<img" not in json.dumps(figure)


def test_summary_table_survives_names_with_bars_and_line_breaks() -> None:
    results = tiny({}, [(1.0, 1.0)])
    results.results[1] = replace(results.results[1], name="a|b`c\nd<e")
    row = summary_markdown(results).splitlines()[-1]
    assert row.count("|") == 11
    assert row.count("`") == 2


def test_lone_surrogate_does_not_stop_the_report(tmp_path: Path) -> None:
    results = sweep_results()
    sample = replace(results.results[0].samples[0], text="\ud800 half a character")
    results.results[0] = replace(results.results[0], samples=[sample])
    write_report(results, tmp_path)
    assert "half a character" in (tmp_path / "index.html").read_text(encoding="utf-8")


# --- sweeps that are not whole -------------------------------------------------------------------


def test_no_trial_succeeded() -> None:
    results = sweep_results()
    struck = [
        failed(result.trial, result.name, index)
        for index, result in enumerate(results.results)
        if result.trial is not None
    ]
    shown = page(replace(results, results=[results.results[0], *struck]))
    assert "No trial has succeeded, so there is nothing to compare." in shown.text
    assert shown.text.count("Lower learning_rate") == 1, "the same failure is told once"
    assert shown.text.count("Traceback of hinge-beta0.05") == 1
    assert "0 succeeded, 12 failed, 0 not run (of 12)" in shown.text


def test_no_reward_leaves_the_reward_plots_out() -> None:
    results = sweep_results()
    bare = [_without_reward(result) for result in results.results]
    shown = page(replace(results, results=bare))
    assert "without a reward, so there are no reward plots" in shown.text
    assert [name for name in shown.data["figures"] if name.startswith("reward")] == []
    assert "Best accuracy on the test pairs" in shown.text
    assert "Best reward: none" in summary_markdown(replace(results, results=bare))


def _without_reward(result: TrialResult) -> TrialResult:
    metrics: Metrics = {
        name: None if name.startswith(("reward", "win_rate")) else value
        for name, value in result.metrics.items()
    }
    return replace(
        result, metrics=metrics, samples=[replace(sample, reward=None) for sample in result.samples]
    )


def test_single_trial_has_no_budget() -> None:
    results = sweep_results([TrialSpec(loss_type="sigmoid", beta=0.1, learning_rate=1e-5)])
    shown = page(results)
    models = "policy builtin:tiny-gpt2; reward builtin:tiny-classifier"
    assert f"1 trial: sigmoid; beta 0.1; {models}." in shown.text
    assert "within KL" not in shown.text
    assert shown.data["figures"]["reward-kl"]["data"]


def test_running_sweep_says_what_is_missing() -> None:
    results = sweep_results()
    blank = {"metrics": {}, "samples": [], "train_seconds": None, "failure": None}
    running = [replace(r, status=Status.RUNNING, **blank) for r in results.results[4:6]]
    pending = [replace(r, status=Status.PENDING, **blank) for r in results.results[6:]]
    shown = page(replace(results, results=[*results.results[:4], *running, *pending]))
    assert "3 succeeded, 0 failed, 2 running, 7 not run (of 12)" in shown.text
    assert "this page shows the results so far: 2 running, 7 pending." in shown.text
    assert "2 running: sigmoid-beta0.05, sigmoid-beta0.2." in shown.text


def test_untrained_policy_is_missing() -> None:
    results = sweep_results()
    shown = page(replace(results, results=results.results[1:]))
    assert "The untrained policy is not evaluated yet" in shown.text
    assert shown.data["figures"]["reward-beta"]["layout"]["shapes"] == []
    assert not shown.data["samples"]["policies"][0]["untrained"]


def test_nothing_has_run() -> None:
    results = SweepResults("empty", {}, [], [], {})
    html = page_html(results)
    assert "There are no trials yet." in html
    assert "PLOTLY" not in html
    assert "Best reward: no trial has succeeded" in summary_markdown(results)


def test_hundred_trials_keep_the_page_small() -> None:
    blocks = [
        GridBlock(loss_type=("sigmoid", "hinge"), beta=(0.05, 0.1, 0.2, 0.5, 1.0)),
        GridBlock(
            f_divergence_type=("js_divergence", "forward_kl", "alpha_divergence"),
            alpha=(0.3, 0.5),
            beta=(0.05, 0.1, 0.2, 0.5, 1.0),
        ),
    ]
    specs = expand(blocks, [0, 1, 2])
    assert len(specs) > MAX_LABELS
    html = page_html(sweep_results(specs, num_prompts=25))
    data = Page(html).data
    assert len(data["samples"]["prompts"]) == MAX_PROMPTS
    assert data["samples"]["num_prompts"] == 25
    assert data["figures"]["reward-kl"]["data"][2]["mode"] == "markers"
    assert len(html) < 3_000_000


def test_prompts_beyond_the_character_limit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefsweep.orchestrator.report.policies.MAX_CHARACTERS", 1)
    data = sample_data(compare(sweep_results()), pool(compare(sweep_results())))
    assert (len(data["prompts"]), data["num_prompts"]) == (1, len(PROMPTS))


# --- numbers --------------------------------------------------------------------------------------


def test_numbers_have_about_four_digits() -> None:
    values = [None, 0.0, 1e-5, 0.12345, 9.9999, 12.345, 123.45, 12345.6, -0.5, float("nan")]
    assert [show(value) for value in values] == [
        *("\u2013", "0.000", "1.0e-05", "0.123", "10.00", "12.35", "123.5", "12,346", "-0.500"),
        "\u2013",
    ]


def test_durations_are_read_not_computed() -> None:
    seconds = [0.04, 59.9, 59.96, 200.0, 3599.6, 7500.0, None]
    assert [duration(s) for s in seconds] == [
        *("0.0 s", "59.9 s", "1 min 00 s", "3 min 20 s", "1 h 00 min", "2 h 05 min", "\u2013"),
    ]
