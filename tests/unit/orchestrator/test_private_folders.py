"""Nobody else reads or swaps what lies in the system's temporary folder, whose names are known."""

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs

from prefsweep.orchestrator.store.downloads import download_cache
from prefsweep.orchestrator.store.scratch import private_folder, scratch_folder, scratch_home
from prefsweep.orchestrator.store.store import Store, new_manifest


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("place", [scratch_home, download_cache])
def test_a_folder_in_the_temporary_one_is_closed_to_others(place: Callable[[], Path]) -> None:
    assert mode(place()) == 0o700
    place().chmod(0o755)  # as earlier versions made it
    assert mode(place()) == 0o700


def taken_by_another_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    another = folder.stat().st_uid + 1
    monkeypatch.setattr(os, "getuid", lambda: another)
    folder.rename(folder.with_name(f"prefsweep-tmp-{os.getuid()}"))


def a_link(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = folder.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)


def open_to_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.touch()


@pytest.mark.parametrize("taken", [taken_by_another_user, a_link, open_to_others, a_file])
def test_a_name_that_somebody_else_took_first_is_left_alone(
    taken: Callable[[Path, pytest.MonkeyPatch], None],
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    taken(temporary / f"prefsweep-tmp-{os.getuid()}", monkeypatch)
    known = temporary / f"prefsweep-tmp-{os.getuid()}"
    home = scratch_home()
    assert home != known and mode(home) == 0o700
    assert home == scratch_home(), "one folder a process"
    assert f"{known} belongs to another user, is a link, or is writable by others" in caplog.text
    with scratch_folder(scratch_home()) as folder:
        (folder / "package").touch()
        assert known not in folder.parents and not list(known.glob("*"))


def test_copies_of_a_private_store_are_not_readable_by_others(temporary: Path) -> None:
    store = Store(f"/{uuid4().hex}")
    store.fs, store.is_local = fs.PyFileSystem(fs.FSSpecHandler(MemoryFileSystem())), False
    with store.staging() as folder:
        (folder / "a").write_text("private")
        store.publish("artifacts/x", folder, new_manifest("f", 1, 0.0))
    copy = store.fetch("artifacts/x") / "a"
    assert copy.read_text() == "private"
    closed = [parent for parent in copy.parents if temporary in parent.parents]
    assert any(mode(parent) == 0o700 for parent in closed)


def test_a_temporary_folder_for_wandb_is_private_too() -> None:
    assert mode(private_folder("prefsweep-wandb", keep=True)) == 0o700
