"""A store up to the trials, a copy of it for each test, and one whose trial nothing disturbed."""

from pathlib import Path

import pytest

from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.tasks.worker import set_up_worker

from ...conftest import BuildOnce
from ..small import run_inline, small_sweep, with_artifacts_of
from .in_process import OVERRIDES, copy_of


@pytest.fixture(scope="session")
def data(finished_sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with everything up to the trials."""
    folder = tmp_path_factory.mktemp("data") / "store"
    run_inline(with_artifacts_of(finished_sweep, folder, *OVERRIDES), until="untrained")
    return folder


@pytest.fixture(scope="session")
def undisturbed(data: Path, build_once: BuildOnce) -> Sweep:
    folder = build_once("one-trial", lambda folder: run_inline(copy_of(data, folder)))
    return small_sweep(folder / "store", *OVERRIDES)


@pytest.fixture
def sweep(data: Path, tmp_path: Path) -> Sweep:
    set_up_worker(1)
    return copy_of(data, tmp_path)
