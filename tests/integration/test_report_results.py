"""What the report reads of small but real sweeps: distributions, times, what was found."""

import time
from pathlib import Path

from prefsweep.orchestrator.execution.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.results.results import read_results
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.sweeps.records import DataFacts
from tests.integration.small import small_sweep


def run(sweep: Sweep, until: str = "report") -> None:
    run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources), until=until)


def test_results_have_distributions_times_and_what_other_sweeps_had_made(tmp_path: Path) -> None:
    first = small_sweep(tmp_path)
    before = read_results(first)
    assert before.data == DataFacts()
    assert set(before.missing) >= {"prompts", "eval_prompts", "completions", "untrained"}
    run(first)
    results = read_results(first)
    assert results.missing == []
    assert not any(stage.found for stage in results.stages)
    assert all((result.evaluate_seconds or 0.0) > 0 for result in results.results)
    assert results.environment["torch"]
    rows = {stage.name: stage.rows for stage in results.stages}
    data = results.data
    assert data.scores is not None and data.margins is not None and data.lengths is not None
    assert sum(data.scores.counts["all"]) == rows["scores"]
    assert sum(data.scores.counts["rejected"]) == sum(data.margins.counts["pairs"]) == rows["pairs"]
    assert sum(data.lengths.counts["chosen"]) == rows["reference"]
    assert data.margins.edges[0] > 0, "the chosen completion has the higher reward"

    made = time.time()
    while int(time.time()) <= int(made):  # manifests tell whole seconds
        time.sleep(0.02)
    second = small_sweep(
        tmp_path,
        "name=other",
        "grid=[{loss_type: [sigmoid, ipo], beta: [0.1], learning_rate: 1e-3}]",
    )
    run(second)
    results = read_results(second)
    assert all(stage.found for stage in results.stages)
    assert {result.name: result.found for result in results.results} == {
        "untrained": True,
        "sigmoid-beta0.1": True,
        "ipo-beta0.1": False,
    }
    page = tmp_path / "sweeps/other/report/index.html"
    assert "reused from other sweeps" in page.read_text(encoding="utf-8")
    assert not any(stage.found for stage in read_results(first).stages), "it made them itself"
