"""The report is drawn once for the same results, and anew when anything that it shows changes."""

from pathlib import Path

import pytest

from prefsweep.orchestrator.report import publish
from prefsweep.orchestrator.report.publish import is_drawn, publish_report
from prefsweep.orchestrator.state.sweep import Sweep, resolve
from prefsweep.orchestrator.state.trial_record import write_status
from prefsweep.orchestrator.store.store import new_manifest
from prefsweep.sweeps.load import load_spec
from prefsweep.sweeps.records import Status


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    sweep = resolve(load_spec("quickstart", []), str(tmp_path))
    publish_report(sweep)
    return sweep


def test_an_unchanged_sweep_is_not_drawn_again(sweep: Sweep) -> None:
    assert is_drawn(sweep)


def test_a_trial_that_moved_on_is_drawn(sweep: Sweep) -> None:
    write_status(sweep, sweep.trials[0], Status.RUNNING)
    assert not is_drawn(sweep)
    publish_report(sweep)
    assert is_drawn(sweep)


def test_a_new_artefact_is_drawn(sweep: Sweep, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    sweep.store.publish(sweep.path("pairs"), folder, new_manifest(sweep.fingerprints.pairs, 0, 0.0))
    assert not is_drawn(sweep)


def test_another_grid_is_drawn(sweep: Sweep) -> None:
    longer = resolve(load_spec("quickstart", ["seeds=[0, 1]"]), sweep.storage)
    assert not is_drawn(longer)


@pytest.mark.parametrize("name", [*publish.FILES, publish.SHOWN])
def test_a_report_with_a_file_missing_is_drawn(sweep: Sweep, name: str) -> None:
    sweep.store.delete(sweep.store.sweep(sweep.spec.name, "report", name))
    assert not is_drawn(sweep)


def test_other_code_that_draws_draws_anew(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.py").write_text("another")
    monkeypatch.setattr(publish, "CODE", (*publish.CODE, tmp_path))
    assert not is_drawn(sweep)


def test_the_code_that_draws_is_where_it_is_looked_for() -> None:
    files = {file.name for place in publish.CODE for file in (place, *place.rglob("*"))}
    assert {"page.py", "analysis.py", "text.py", "page.js"} <= files
