"""The report's page in a real browser: drawn, quiet, and everything on it works."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, expect

from prefsweep.orchestrator.report.page import page_html
from prefsweep.orchestrator.results.analysis import compare, pool
from prefsweep.sweeps.grid import GridBlock, TrialSpec, expand
from prefsweep.sweeps.records import Status, SweepResults
from tests.integration.browser import DEADLINE_MS, NAMES, Shown, chromium, opened, started
from tests.unit.orchestrator.report_fixture import GRID, failed, sweep_results
from tests.unit.orchestrator.report_hostile import TEXTS, hostile_results

pytestmark = pytest.mark.skipif(
    chromium() is None, reason=f"no browser: none of {', '.join(NAMES)} is on the PATH"
)
Open = Callable[..., Shown]
OPEN_ALL = "() => { for (const one of document.querySelectorAll('details')) one.open = true; }"
expect.set_options(timeout=DEADLINE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens the page of some results; at the end no page may have done what it should not."""
    with ExitStack() as stack:
        pages: list[Shown] = []

        def open_one(results: SweepResults, **how: Any) -> Shown:
            file = tmp_path / f"{len(pages)}.html"
            file.write_bytes(page_html(results).encode("utf-8", errors="replace"))
            pages.append(stack.enter_context(opened(browser, file, **how)))
            return pages[-1]

        yield open_one
        assert [problem for page in pages for problem in page.problems] == []


def chosen(shown: Shown) -> list[str]:
    """The trials that the bar at the bottom names."""
    chips = "[...document.querySelectorAll('#chosen .chip')].map((chip) => chip.dataset.choose)"
    return shown.value(chips)


# --- drawn ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True])
def test_every_plot_is_drawn_light_and_dark(open_page: Open, dark: bool) -> None:
    shown = open_page(sweep_results(), dark=dark)
    empty = shown.value(
        """() => [...document.querySelectorAll(".plot")]
             .filter((plot) => !plot.querySelector(".main-svg .trace, .main-svg .boxlayer .trace"))
             .map((plot) => plot.id)"""
    )
    assert empty == []
    ground = shown.value("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")


def test_switch_turns_page_and_plots_dark_and_back(open_page: Open) -> None:
    shown = open_page(sweep_results())
    ink = "document.getElementById('reward-kl').layout.font.color"
    light = shown.value(ink)
    shown.page.get_by_role("button", name="Dark mode").click()
    assert shown.value("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert shown.value(ink) != light
    shown.page.get_by_role("button", name="Light mode").click()
    assert shown.value(ink) == light


def test_paper_is_light_and_has_no_controls(open_page: Open) -> None:
    shown = open_page(sweep_results(), dark=True)
    shown.page.emulate_media(media="print", color_scheme="dark")
    assert shown.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    expect(shown.page.locator("nav")).to_be_hidden()
    expect(shown.page.locator("#filter")).to_be_hidden()
    expect(shown.page.locator("#trial-table")).to_be_visible()


def test_a_plot_can_be_read_as_a_table(open_page: Open) -> None:
    shown = open_page(sweep_results())
    for plot in ("reward-kl", "reward-box-f0", "curve-loss"):
        details = shown.page.locator(f"details[data-plot={plot}]")
        details.locator("summary").click()
        expect(details.locator("tbody tr").first).to_be_visible()
    shown.page.locator("details[data-plot=reward-beta] summary").click()
    betas = shown.page.locator("details[data-plot=reward-beta] td:nth-child(2)").all_inner_texts()
    assert set(betas) == {"0.05", "0.1", "0.2", "0.5", "1"}, "not those moved apart"
    names = shown.page.locator("details[data-plot=reward-kl] tbody th").all_inner_texts()
    finished = [r.name for r in sweep_results().results if r.status is Status.SUCCEEDED]
    assert sorted(names) == sorted(finished)


# --- the slider ----------------------------------------------------------------------------------


def test_slider_finds_the_best_trial_within_the_budget(open_page: Open) -> None:
    results = sweep_results()
    shown = open_page(results)
    slider, best = shown.page.locator("#budget-slider"), shown.page.locator("#budget-best .name")
    slider.focus()
    slider.press("End")
    top = pool(compare(results)).best
    assert top is not None
    expect(best).to_have_text(top.name)
    slider.press("Home")
    expect(best).to_have_text("untrained")
    slider.press("ArrowRight")
    first = min(compare(results).finished, key=lambda result: result.metrics["kl"] or 0.0)
    expect(best).to_have_text(first.name)
    expect(shown.page.locator("#budget-said")).to_contain_text(first.name)
    budget = float(shown.page.locator("#budget-value").input_value())
    assert slider.get_attribute("aria-valuetext") == f"KL of at most {budget:g} nats"
    [line] = shown.value("document.getElementById('reward-kl').layout.shapes")
    assert line["x0"] == budget


@pytest.mark.parametrize("budget", [2.0, 4.0, 9.0])
def test_typed_budget_gives_what_python_finds(open_page: Open, budget: float) -> None:
    results = sweep_results()
    shown = open_page(results)
    shown.page.locator("#budget-value").fill(str(budget))
    within = [r for r in results.results if r.metrics and (r.metrics["kl"] or 0.0) <= budget]
    expected = max(within, key=lambda result: result.metrics["reward_mean"] or 0.0)
    expect(shown.page.locator("#budget-best .name")).to_have_text(expected.name)


# --- the table -----------------------------------------------------------------------------------


def test_headings_sort_by_mouse_and_keyboard(open_page: Open) -> None:
    shown = open_page(sweep_results())
    heading = shown.page.locator("th[data-name=kl]")
    column = "(rows) => rows.map((row) => row.querySelectorAll('th,td')[%d].dataset.value)"
    place = heading.evaluate("(cell) => cell.cellIndex")
    rows = shown.page.locator("#trial-table tbody tr")

    def values() -> list[float | None]:
        read = rows.evaluate_all(column % place)
        return [None if value is None else float(value) for value in read]

    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    down = [value for value in values() if value is not None]
    assert down == sorted(down, reverse=True)
    assert values()[-1] is None, "what has no value is last"
    heading.locator("button").focus()
    shown.page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [value for value in values() if value is not None] == sorted(down)
    shown.page.locator("th[data-name=name] button").click()
    assert heading.get_attribute("aria-sort") is None


def test_filter_takes_words_and_comparisons(open_page: Open) -> None:
    results = sweep_results()
    shown = open_page(results)
    visible = shown.page.locator("#trial-table tbody tr:visible")
    shown.page.locator("#filter").fill("hinge kl<9")
    expected = [
        r.trial_id
        for r in results.results
        if r.name.startswith("hinge") and (r.metrics["kl"] or 0.0) < 9
    ]
    assert 0 < len(expected) < 3
    assert visible.evaluate_all("(rows) => rows.map((row) => row.dataset.trial)") == expected
    expect(shown.page.locator("#filter-count")).to_have_text(f"{len(expected)} of 12 trials")
    shown.page.locator("#filter").fill("failed")
    expect(visible).to_have_count(1)
    shown.page.locator("#filter").fill("nosuch>1")
    expect(shown.page.locator("#filter-count")).to_contain_text(
        "no column nosuch; the columns are name"
    )
    shown.page.locator("#filter").fill("")
    expect(visible).to_have_count(13)


# --- chosen trials -------------------------------------------------------------------------------


def test_a_point_marks_its_trial_everywhere(open_page: Open) -> None:
    results = sweep_results()
    trial = next(r for r in results.results if r.name == "hinge-beta0.2")
    shown = open_page(results)
    shown.click_point("reward-kl", trial.trial_id)
    assert chosen(shown) == [trial.trial_id]
    rings = shown.value(
        """() => Object.fromEntries([...document.querySelectorAll(".plot")].flatMap((plot) =>
             plot.data.filter((trace) => trace.name === "marks of the chosen")
                      .map((trace) => [plot.id, trace.x.length])))"""
    )
    own_panel = {f"reward-box-f{index}": int(index == 0) for index in range(6)}
    at_beta = {"reward-at-beta": 0}  # it shows another beta
    assert rings == {"reward-kl": 1, "reward-entropy": 1, "reward-beta": 1} | own_panel | at_beta
    bold = shown.value(
        """() => document.getElementById("curve-loss").data
             .filter((trace) => trace.line.width === 3).map((trace) => trace.meta)"""
    )
    assert bold == [f"trial:{trial.trial_id}"]
    expect(shown.page.locator("tr.chosen")).to_have_attribute("data-trial", trial.trial_id)
    names = shown.page.locator("#completions h3").all_inner_texts()
    assert names == ["untrained", "hinge-beta0.2"]
    shown.page.get_by_role("button", name="Clear").click()
    assert chosen(shown) == []
    expect(shown.page.locator("tr.chosen")).to_have_count(0)


def test_a_curve_and_a_row_choose_their_trials_too(open_page: Open) -> None:
    results = sweep_results()
    shown = open_page(results)
    ids = [r.trial_id for r in results.results if r.trial is not None][:2]
    row = shown.page.locator(f"tr[data-trial='{ids[0]}'] .choose")
    row.focus()
    shown.page.keyboard.press("Space")
    assert chosen(shown) == [ids[0]]
    expect(shown.page.locator("#said")).to_contain_text("hinge-beta0.05 chosen; 1 in all")
    shown.value(
        """(id) => { const plot = document.getElementById("curve-loss");
           const data = plot.data.find((trace) => trace.meta === `trial:${id}`);
           plot.emit("plotly_click", { points: [{ data, pointNumber: 0 }] }); }""",
        ids[1],
    )
    assert chosen(shown) == ids
    shown.page.locator("#chosen .chip").first.click()
    assert chosen(shown) == [ids[1]]


def test_the_mean_of_seeds_chooses_all_of_them(open_page: Open) -> None:
    grid = [GridBlock(beta=(0.1, 1.0), learning_rate=(1e-5,))]
    results = sweep_results(expand(grid, [0, 1, 2]), seed=1, num_prompts=30)  # no seed at the mean
    shown = open_page(results)
    ids = [r.trial_id for r in results.results if r.name.startswith("sigmoid-beta0.1")]
    shown.click_point("reward-kl", " ".join(ids))
    assert chosen(shown) == ids
    expect(shown.page.locator("#compare")).to_contain_text("Small points are seeds")


# --- completions, curves, legends ----------------------------------------------------------------


def test_completions_go_through_the_prompts_and_mark_what_differs(open_page: Open) -> None:
    results = sweep_results()
    shown = open_page(results)
    base = results.results[0].samples
    shown.page.locator("#policies").select_option("all")
    cards = shown.page.locator("#completions .completion")
    expect(cards).to_have_count(12)
    expect(cards.first.locator(".text").first).to_have_text(base[0].text.strip())
    expect(cards.first.locator("mark")).to_have_count(0)
    assert cards.nth(1).locator("mark").count() > 0
    other = next(r for r in results.results[1:] if r.samples).samples[0]
    gain = (other.reward or 0.0) - (base[0].reward or 0.0)
    expect(cards.nth(1).locator(".score").first).to_contain_text(f"reward {other.reward:.3f}")
    expect(cards.nth(1).locator(".score").first).to_contain_text(f"{abs(gain):.3f})")
    shown.page.locator("#differences").uncheck()
    expect(shown.page.locator("mark")).to_have_count(0)
    shown.page.get_by_role("button", name="Next prompt").click()
    assert shown.page.locator("#prompt-text").text_content() == base[2].prompt
    expect(cards.first.locator(".text").first).to_have_text(base[2].text.strip())


def test_smoothing_moves_the_curves_and_nothing_is_lost(open_page: Open) -> None:
    shown = open_page(sweep_results())
    curve = "() => document.getElementById('curve-loss').data[0].y"
    raw = shown.value(curve)
    slider = shown.page.locator("#smoothing")
    slider.fill("0.5")
    smooth = shown.value(curve)
    # The weights of the first two values are 0.25 and 0.5, of 0.75 in all.
    assert smooth[0] == pytest.approx(raw[0])
    assert smooth[1] == pytest.approx((0.25 * raw[0] + 0.5 * raw[1]) / 0.75)
    slider.fill("0")
    assert shown.value(curve) == raw


def test_legend_hides_a_loss_and_scale_turns_logarithmic(open_page: Open) -> None:
    shown = open_page(sweep_results())
    button = shown.page.locator("[data-plots=compare] button[data-key=f0]")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    visible = """() => document.getElementById("reward-kl").data
      .filter((trace) => trace.meta === "f0").map((trace) => trace.visible)"""
    assert set(shown.value(visible)) == {False}
    shown.page.get_by_role("button", name="KL on a log scale").click()
    assert shown.value("document.getElementById('reward-kl').layout.xaxis.type") == "log"
    shown.page.locator("[data-choices=reward-at-beta]").select_option("0.5")
    ticks = "document.getElementById('reward-at-beta').layout.yaxis.ticktext"
    assert set(shown.value(ticks)) == {"js_divergence", "forward_kl"}


# --- phones, readers, hostile texts --------------------------------------------------------------


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (360, True)])
def test_axe_finds_no_serious_violation(open_page: Open, width: int, dark: bool) -> None:
    results = sweep_results()
    few = [r for r in results.results if "kl" in r.name or r.trial is None]
    shown = open_page(replace(results, results=few), width=width, dark=dark)
    shown.page.locator(".choose").first.check()
    shown.value(OPEN_ALL)
    shown.value((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text())
    # The drawings are Plotly's; each has its numbers as a table beside it.
    found = shown.value("() => axe.run({ exclude: ['.main-svg'] })")
    assert len(found["passes"]) > 20, "it looked at the page"
    serious = {
        violation["id"]: [node["target"] for node in violation["nodes"]][:5]
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
    }
    assert serious == {}


@pytest.mark.parametrize("width", [360, 1200])
def test_page_never_scrolls_sideways(open_page: Open, width: int) -> None:
    for results in (sweep_results(), hostile_results()):
        shown = open_page(results, width=width)
        shown.value(
            "() => document.querySelectorAll('details').forEach((each) => each.open = true)"
        )
        shown.page.locator("#policies").select_option("all")
        for _ in range(shown.page.locator("#prompt option").count() - 1):
            shown.page.locator("#next-prompt").click()
            assert shown.value("document.documentElement.scrollWidth") == width


def test_hostile_texts_are_shown_and_nothing_runs(open_page: Open) -> None:
    shown = open_page(hostile_results())
    shown.page.locator("#policies").select_option("all")
    shown.page.locator("#differences").uncheck()
    for number, text in enumerate(TEXTS):
        shown.page.locator("#prompt").select_option(index=number)
        assert shown.page.locator("#prompt-text").text_content() == text
        shown_texts = shown.page.locator("#completions .text").all_text_contents()
        assert all(shown_text in TEXTS for shown_text in shown_texts)
    shown.click_point("reward-kl", f"{1:012x}")
    shown.page.locator("details").evaluate_all(
        "(all) => all.forEach((one) => { one.open = true; })"
    )
    assert shown.value("() => window.hacked") is None
    assert shown.page.locator("img, iframe, object, embed").count() == 0
    assert "49" not in shown.text("h1")


# --- sweeps of all sizes -------------------------------------------------------------------------


def test_one_trial(open_page: Open) -> None:
    shown = open_page(sweep_results([TrialSpec(loss_type="sigmoid", beta=0.1, learning_rate=1e-5)]))
    assert shown.page.locator("#budget").count() == 0
    shown.click_point("reward-kl", f"{0:012x}")
    assert chosen(shown) == [f"{0:012x}"]


def test_all_failed(open_page: Open) -> None:
    results = sweep_results()
    struck = [failed(r.trial, r.name, index) for index, r in enumerate(results.results) if r.trial]
    shown = open_page(replace(results, results=[results.results[0], *struck]))
    expect(shown.page.locator("#compare")).to_contain_text("No trial has succeeded")
    failure = shown.page.locator(".failure")
    failure.locator("summary").click()
    expect(failure.locator("pre")).to_contain_text("NonFiniteLoss: loss is nan")
    expect(failure).to_contain_text("What to do: Lower learning_rate")


def test_running_sweep_says_what_is_missing(open_page: Open) -> None:
    results = sweep_results()
    waiting = [
        replace(r, status=Status.PENDING, metrics={}, samples=[], history=[], failure=None)
        for r in results.results[2:]
    ]
    shown = open_page(
        replace(results, results=[results.results[1], *waiting], missing=["untrained"])
    )
    shown.page.get_by_role("link", name="Unfinished stages and trials").click()
    expect(shown.page.locator("#unfinished")).to_contain_text("Stages: untrained.")
    expect(shown.page.locator("#unfinished")).to_contain_text("11 pending: ")


def test_five_hundred_trials(open_page: Open) -> None:
    betas = tuple(round(0.01 * 1.02**n, 6) for n in range(125))
    grid = [block.model_copy(update={"beta": betas}) for block in GRID[:2]]
    results = sweep_results(expand(grid, [0]), num_prompts=20)
    assert len(results.results) == 501
    shown = open_page(results)
    shown.page.locator("#filter").fill("hinge")
    expect(shown.page.locator("#filter-count")).to_have_text("125 of 500 trials")
    shown.page.locator("tr[data-trial] .choose").nth(3).check()
    assert len(chosen(shown)) == 1
