"""`report --format`: pictures of the frontier, and parts of the report in files."""

import sys
from pathlib import Path

import pytest

from prefsweep.orchestrator.report.static import write_figure
from prefsweep.orchestrator.results.results import read_results
from prefsweep.sweeps.errors import DataError, UsageError
from prefsweep.sweeps.records import SweepResults
from tests.integration.small import small_sweep
from tests.unit.orchestrator.report_fixture import sweep_results

HEADS = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}


@pytest.mark.parametrize("suffix", HEADS)
def test_the_frontier_is_drawn_and_equal_results_give_equal_bytes(
    suffix: str, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / f"{name}{suffix}" for name in ("one", "again")]
    for file in files:
        write_figure(sweep_results(), file)
    assert files[0].read_bytes().startswith(HEADS[suffix])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_every_family_and_the_untrained_policy_are_in_the_legend(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_figure(sweep_results(), tmp_path / "frontier.svg")
    text = (tmp_path / "frontier.svg").read_text()
    assert all(word in text for word in ("untrained", "hinge", "sigmoid", "KL to the reference"))


def test_without_matplotlib_the_remedy_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="pip install matplotlib"):
        write_figure(sweep_results(), tmp_path / "frontier.png")


def test_a_sweep_without_finished_trials_has_no_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results: SweepResults = read_results(small_sweep(tmp_path))
    with pytest.raises(DataError, match="no trial has a reward and a KL yet"):
        write_figure(results, tmp_path / "frontier.png")
