"""Commands in messages can be pasted: quoted, and with the storage that they need."""

import shlex
from pathlib import Path

import pytest

from prefsweep.orchestrator.state.hints import hint

S3 = "s3://bucket/runs?endpoint_override=s3:9000&scheme=http"


def test_a_store_that_is_not_the_default_is_named() -> None:
    said = hint("status", "imdb", storage=S3)
    assert shlex.split(said.strip("`")) == ["prefsweep", "status", "imdb", "--storage", S3]
    assert f"'{S3}'" in said


def test_the_default_is_left_out_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFSWEEP_STORAGE", raising=False)
    for default in ("./runs", "runs", str(tmp_path / "runs")):
        assert hint("resume", "imdb", storage=default) == "`prefsweep resume imdb`"
    monkeypatch.setenv("PREFSWEEP_STORAGE", S3)
    assert hint("resume", "imdb", storage=S3) == "`prefsweep resume imdb`"
    named = f"`prefsweep resume imdb --storage {tmp_path / 'runs'}`"
    assert hint("resume", "imdb", storage="./runs") == named, "another folder is another ./runs"
