"""`explain`, `schema`, and what the shell completes."""

import json
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from typer.main import get_command

from prefsweep.orchestrator.commands import cli, options


def run(*words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["prefsweep", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_explain_prints_meaning_values_and_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", "max_steps", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert "training.max_steps" in said and "Optimizer steps" in said and "default: null" in said
    assert run("explain", "no_such", monkeypatch=monkeypatch) == 2


def test_schema_is_printed_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("schema", "--to", str(tmp_path / "s.json"), monkeypatch=monkeypatch) == 0
    capsys.readouterr()
    assert run("schema", monkeypatch=monkeypatch) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "s.json").read_text()) == printed
    assert printed["properties"]["training"]
    assert run("schema", "--to", str(tmp_path / "no" / "s.json"), monkeypatch=monkeypatch) == 2


def test_the_shell_completes_specs_and_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "other.yaml").touch()
    (tmp_path / "runs" / "sweeps" / "imdb").mkdir(parents=True)
    monkeypatch.delenv(options.STORAGE_VARIABLE, raising=False)
    command = get_command(cli.app)
    with command.make_context("prefsweep", ["status", "x"]) as context:
        assert options._complete_spec("quick") == ["quickstart"]
        assert options._complete_spec("mi") == ["mine.yaml"]
        assert options._complete_spec("specs/o") == ["specs/other.yaml"]
        assert options._complete_name(cast("Any", context), "im") == ["imdb"]
    assert {"--install-completion", "--show-completion"} <= {
        option for parameter in command.params for option in parameter.opts
    }
