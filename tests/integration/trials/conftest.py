"""A store up to the trials, a copy of it for each test, and one whose trial nothing disturbed."""

from pathlib import Path

import pytest

from prefsweep.orchestrator.cluster import InlineCluster
from prefsweep.orchestrator.machines.border import set_up_worker
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.sweep import Sweep

from ..small import small_sweep
from .in_process import OVERRIDES, copy_of


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with everything up to the trials."""
    folder = tmp_path_factory.mktemp("data")
    sweep = small_sweep(folder, *OVERRIDES)
    run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources), until="untrained")
    return folder


@pytest.fixture(scope="session")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    sweep = copy_of(data, tmp_path_factory.mktemp("undisturbed"))
    run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources))
    return sweep


@pytest.fixture
def sweep(data: Path, tmp_path: Path) -> Sweep:
    set_up_worker(1)
    return copy_of(data, tmp_path)
