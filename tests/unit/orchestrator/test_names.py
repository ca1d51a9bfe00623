"""Names of sweeps and trials are names: what leads out of the store is refused with exit code 2."""

import sys
from pathlib import Path

import pytest

from prefsweep.orchestrator.commands import cli
from tests.integration.small import small_sweep

OUTSIDE = ["..", "../elsewhere", "../../elsewhere", "/elsewhere", "a/../../../elsewhere"]


def refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> str:
    """What the command says when it refuses."""
    monkeypatch.setattr(sys, "argv", ["prefsweep", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = " ".join(capsys.readouterr().err.split())
    assert stop.value.code == 2, said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("command", ["resume", "status", "report", "stop", "export"])
def test_a_name_that_leaves_the_store_is_refused(
    command: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    decoy = tmp_path / "elsewhere"
    decoy.mkdir()
    (decoy / "spec.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    words = [command, name, "--storage", str(tmp_path / "store")]
    if command == "export":
        words += ["--to", str(tmp_path / "out"), "--dataset"]
    refusal(monkeypatch, capsys, *words)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_spec_cannot_name_a_sweep_outside(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "name" in refusal(monkeypatch, capsys, "plan", "quickstart", f"name={name}")


@pytest.mark.parametrize("trial", ["..", "../../trials", "/elsewhere"])
def test_export_takes_trials_of_the_sweep_only(
    trial: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefsweep.orchestrator.state.sweep import spec_document

    sweep = small_sweep(tmp_path / "store")
    sweep.store.write_json(sweep.store.sweep("small", "spec.json"), spec_document(sweep))
    words = ["export", "small", trial, "--to", str(tmp_path / "out")]
    refusal(monkeypatch, capsys, *words, "--storage", str(tmp_path / "store"))
    assert not (tmp_path / "out").exists()


def test_until_takes_stages_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(monkeypatch, capsys, "run", "quickstart", "--until", "../pairs")
    assert "'../pairs' is not one of" in said
