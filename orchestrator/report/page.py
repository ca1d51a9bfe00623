"""Renders index.html: one self-contained page that makes no network requests.

All text is escaped by Jinja or, as JSON, by `embedded_json`; scripts insert it as text, never as
markup. A content security policy in the page forbids all requests.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from prefsweep.orchestrator.report.betas import losses_at_one_beta
from prefsweep.orchestrator.report.figures import (
    DASHES,
    comparison_plots,
    hidden_at_first,
    training_plots,
)
from prefsweep.orchestrator.report.findings import headline
from prefsweep.orchestrator.report.methods import bibtex, methods_paragraph
from prefsweep.orchestrator.report.pivots import pivot_tables
from prefsweep.orchestrator.report.points import are_thinned, box_plots
from prefsweep.orchestrator.report.policies import competing_facts, policy_facts, sample_data
from prefsweep.orchestrator.report.sections import (
    cost,
    data_plots,
    dropped,
    failures,
    provenance,
    stage_rows,
    unfinished,
)
from prefsweep.orchestrator.report.style import SYMBOLS, Family, Plot, families
from prefsweep.orchestrator.report.tables import trial_table
from prefsweep.orchestrator.results.analysis import Comparison, Pooled, compare, metric, pool
from prefsweep.sweeps.grid import number
from prefsweep.sweeps.records import SweepResults

SCRIPTS = ("page", "plots", "curves", "chosen", "budget", "table", "samples", "start")
"""The page's scripts in the order in which they are concatenated."""
PLOTLY = "plotly-cartesian.min.js"
MAX_LEGEND_TRIALS = 60
"""With more trials, training curves have one button per loss instead of one per trial."""


def page_html(results: SweepResults, pooled: Pooled | None = None) -> str:
    """Render the page; `pooled` are the pooled results, if already computed."""
    comparison = compare(results)
    pooled = pooled or pool(comparison)
    groups = families(comparison.trials)
    comparisons, curves = comparison_plots(comparison, groups, pooled), training_plots(groups)
    boxes, at_beta = box_plots(comparison, groups), losses_at_one_beta(comparison, groups)
    by_loss = [*([at_beta.plot] if at_beta else []), *(plot for _, plot in boxes)]
    of_data = data_plots(results)
    figures = {plot.id: plot.figure for plot in (*comparisons, *by_loss, *curves, *of_data)}
    samples = sample_data(comparison, pooled)
    data = {
        "policies": policy_facts(comparison, groups),
        "competing": competing_facts(comparison, pooled),
        "figures": figures,
        "choices": {at_beta.plot.id: at_beta.choices} if at_beta else {},
        "samples": samples,
    }
    return _template().render(
        style=Markup(asset("style.css")),
        script=_script(),
        plotly=Markup(asset(PLOTLY)) if figures else "",
        data=embedded_json(data),
        head=headline(results, comparison, groups, pooled),
        comparison_plots=comparisons,
        no_plots=_why_no_plots(comparison),
        boxes=[_box_panel(family, plot) for family, plot in boxes],
        boxes_are_thinned=are_thinned(groups),
        at_beta=at_beta,
        pivots=pivot_tables(comparison, groups, pooled),
        training_plots=curves,
        has_kl_curve="curve-eval-kl" in figures,
        families=_legend(groups),
        table=trial_table(comparison, groups, pooled),
        samples=samples,
        failures=failures(results),
        unfinished=unfinished(comparison),
        missing=results.missing,
        stages=stage_rows(results),
        dropped=dropped(results),
        quarantined=results.quarantined,
        data_plots=of_data,
        cost=cost(results),
        provenance=provenance(results),
        methods=methods_paragraph(results, comparison, pooled),
        bibtex=bibtex(comparison, pooled),
    )


def embedded_json(value: object) -> Markup:
    """Compact JSON that cannot close the script element around it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def asset(name: str) -> str:
    """Text of a file in the folder `web`."""
    folder = resources.files("prefsweep.orchestrator.report").joinpath("web")
    return folder.joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(asset("template.html"))


def _script() -> Markup:
    """The page's scripts in one function scope."""
    parts = "\n".join(asset(f"{name}.js") for name in SCRIPTS)
    return Markup('(() => {\n"use strict";\n' + parts + "})();")


def _why_no_plots(comparison: Comparison) -> str:
    if not comparison.finished:
        return "No trial has succeeded, so there is nothing to compare."
    return (
        "The trials were evaluated without a reward, so there are no reward plots; "
        "the table has their other metrics."
    )


def _box_panel(family: Family, plot: Plot) -> dict[str, Any]:
    return {"plot": plot, "colour": family.colour, "path": SYMBOLS[family.symbol]}


def _legend(groups: Sequence[Family]) -> list[dict[str, Any]]:
    """The legend buttons: one per family, and one per trial unless there are too many."""
    hidden, num = hidden_at_first(groups), sum(len(family.members) for family in groups)
    return [_legend_of(family, hidden, each=num <= MAX_LEGEND_TRIALS) for family in groups]


def _legend_of(family: Family, hidden: set[str], *, each: bool) -> dict[str, Any]:
    patterns = list(DASHES.values())
    trials = [
        {
            "key": f"trial:{member.trial_id}",
            "name": member.name,
            "short": short,
            "dash": patterns[rank % len(patterns)],
            "shown": member.trial_id not in hidden,
        }
        for rank, (member, short) in enumerate(
            zip(family.members, _short_names(family), strict=True)
        )
        if member.history
    ]
    return {
        "key": family.key,
        "label": family.label,
        "colour": family.colour,
        "path": SYMBOLS[family.symbol],
        "trials": trials if each else [],
        "curves": " ".join(trial["key"] for trial in trials),
        "shown": any(trial["shown"] for trial in trials),
        "drawn": any(metric(m, "reward_mean") is not None for m in family.members),
    }


def _short_names(family: Family) -> list[str]:
    """Names of trials within their family: the beta and, with several seeds, the seed."""
    trials = [member.trial for member in family.members if member.trial is not None]
    with_seed = len({trial.seed for trial in trials}) > 1
    return [number(t.beta) + (f" seed {t.seed}" if with_seed else "") for t in trials]
