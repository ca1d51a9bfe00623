"""One undisturbed run is what every case is compared with."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefsweep.orchestrator.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.sweep import Sweep
from tests.integration.faults.harness import Run, sweep_in

Start = Callable[..., Run]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder are marked; the default run leaves them out."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    sweep = sweep_in(tmp_path_factory.mktemp("undisturbed") / "store")
    run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources))
    return sweep


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the command; whatever a failed test leaves of it is ended."""
    runs: list[Run] = []

    def start_run(storage: Path, *words: str, **options: Any) -> Run:
        runs.append(Run(storage, *words, **options))
        return runs[-1]

    yield start_run
    for run in runs:
        run.clean_up()
