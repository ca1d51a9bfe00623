"""How a run is recorded that does not come to its end (no Ray)."""

import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from prefsweep.orchestrator.driver.run import Run
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.state.trial_record import TrialRecord, trial_status
from prefsweep.sweeps.errors import LostStoreError
from prefsweep.sweeps.records import Status
from tests.integration.small import small_sweep


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return small_sweep(tmp_path)


def test_what_a_worker_writes_until_it_is_ended_is_not_the_last_word(sweep: Sweep) -> None:
    """A second Ctrl-C ends workers in the middle of a step."""
    running, pending = sweep.trials

    def close() -> None:
        TrialRecord(sweep, running).report({"step": 7.0})

    run = Run(sweep, lambda: SimpleNamespace(close=close), "report")  # pyright: ignore
    with pytest.raises(KeyboardInterrupt), run.recorded():
        run._cluster_for("finishing")
        TrialRecord(sweep, running).begin(0)
        raise KeyboardInterrupt
    assert trial_status(sweep, running).status == Status.INTERRUPTED
    assert trial_status(sweep, running).step == 7
    assert trial_status(sweep, pending).status == Status.PENDING


def test_a_run_whose_store_is_removed_ends_at_once_and_makes_nothing_anew(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path / "store")
    run = Run(sweep, lambda: SimpleNamespace(close=lambda: None), "report")  # pyright: ignore
    ends = pytest.raises(LostStoreError, match=r"writes nothing more\. Restore the store")
    with ends, run.recorded():
        run._cluster_for("finishing")
        shutil.rmtree(tmp_path / "store")
        time.sleep(60)
    assert not (tmp_path / "store").exists()
