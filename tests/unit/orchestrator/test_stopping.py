from pathlib import Path

import pytest

from prefsweep.orchestrator.state.stop import clear_stop, request_stop, stop_requested
from prefsweep.orchestrator.store.store import Store


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_request_is_seen_by_all_of_its_sweep_until_it_is_cleared(
    tmp_path: Path, scheme: str
) -> None:
    driver, trial = Store(f"{scheme}{tmp_path}"), Store(f"{scheme}{tmp_path}")
    assert not stop_requested(trial, "mine")
    clear_stop(driver, "mine")
    request_stop(driver, "mine")
    assert stop_requested(trial, "mine")
    assert not stop_requested(trial, "other")
    clear_stop(driver, "mine")
    assert not stop_requested(trial, "mine")
