"""One undisturbed run is what every case is compared with."""

import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefsweep.orchestrator.state.sweep import Sweep
from tests.conftest import BuildOnce
from tests.integration.faults.harness import TRAINING, Run, sweep_in
from tests.integration.small import run_inline, with_artifacts_of

Start = Callable[..., Run]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder are marked; the default run leaves them out."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)


@pytest.fixture(scope="session")
def undisturbed(finished_sweep: Sweep, build_once: BuildOnce) -> Sweep:
    def build(storage: Path) -> None:
        run_inline(with_artifacts_of(finished_sweep, storage, *TRAINING))

    return sweep_in(build_once("undisturbed", build))


@pytest.fixture(autouse=True)
def neighbours(
    request: pytest.FixtureRequest, warm_drivers: None, build_once: BuildOnce
) -> Iterator[None]:
    """A test with the mark `alone` runs while no other fault test does."""
    is_alone = request.node.get_closest_marker("alone") is not None
    with (build_once("neighbours", Path.mkdir) / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
        yield


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
