"""Storage that is full, or that fails for a while, or for good."""

import json
from pathlib import Path

import pytest

from prefsweep.orchestrator.state.sweep import Sweep

from .conftest import Start
from .harness import (
    Fault,
    Run,
    assert_nothing_is_redone,
    assert_results,
    assert_whole,
    finished,
    store_before,
    words,
)


@pytest.mark.parametrize(("stage", "kib"), [("policy", 20), ("completions", 2), ("untrained", 2)])
def test_a_full_disk_ends_the_run_with_a_message_and_room_lets_it_go_on(
    stage: str, kib: int, undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before(stage, undisturbed, tmp_path / "store")
    before = finished(storage)
    full = start(storage, *words("--inline"), max_file_bytes=kib * 1024)
    assert full.wait() == 1, full.output
    assert "Traceback" not in full.output
    assert "File too large" in full.output
    assert str(storage) in full.output, "says where there is no room"
    assert_nothing_is_redone(before)
    again = start(storage, *words("--inline"))
    assert again.wait() == 0, again.output
    assert_nothing_is_redone(before)
    assert_whole(storage)
    assert_results(storage, undisturbed)


def test_a_disk_that_is_full_for_trials_fails_them_with_advice_and_room_lets_them_go_on(
    undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    """On Ray: the trials' workers alone are limited, to less than a checkpoint takes.

    It is more than Ray's own logs take, without which a worker ends.
    """
    storage = store_before("training", undisturbed, tmp_path / "store")
    before = finished(storage)
    fault = Fault("training", "limit_files", times=1000, bytes=100_000)
    full = start(storage, *words(), faults=[fault])
    assert full.wait() == 1, full.output
    statuses = [json.loads(path.read_text()) for path in storage.glob("trials/*/status.json")]
    assert {status["status"] for status in statuses} == {"failed"}
    for status in statuses:
        assert status["failure"]["kind"] == "transient"
        assert "free space" in status["failure"]["advice"]
    again = start(storage, *words("--inline"))
    assert again.wait() == 0, again.output
    assert_nothing_is_redone(before)
    assert_whole(storage)
    assert_results(storage, undisturbed)


@pytest.fixture
def failing(tmp_path: Path) -> Path:
    """The file that says how the storage fails."""
    (tmp_path / "control").mkdir()
    return tmp_path / "control" / "failing"


def on_flaky_storage(start: Start, storage: Path, failing: Path) -> Run:
    env = {"PREFSWEEP_TEST_STORAGE": str(failing.parent)}
    return start(storage, *words("--inline"), uri=f"fsspec+flaky://{storage}", env=env)


def test_storage_that_fails_for_a_while_is_waited_for(
    undisturbed: Sweep, start: Start, tmp_path: Path, failing: Path
) -> None:
    storage = store_before("completions", undisturbed, tmp_path / "store")
    before = finished(storage)
    failing.write_text("2")
    run = on_flaky_storage(start, storage, failing)
    assert run.wait() == 0, run.output
    assert (failing.parent / "has-failed").exists()
    assert "retrying in" in " ".join(run.output.split())
    assert_nothing_is_redone(before)
    assert_whole(storage)
    assert_results(storage, undisturbed)


def test_storage_that_fails_for_good_ends_the_run_and_is_gone_on_with_when_it_works(
    undisturbed: Sweep, start: Start, tmp_path: Path, failing: Path
) -> None:
    storage = store_before("scores", undisturbed, tmp_path / "store")
    failing.write_text("0")
    first = on_flaky_storage(start, storage, failing)
    first.until(lambda: list(storage.glob("artifacts/pairs-*/manifest.json")))
    failing.write_text("always")
    assert first.wait() == 1, first.output
    assert "Traceback" not in first.output
    assert "Input/output error" in first.output
    assert "check the storage, then run the same command" in " ".join(first.output.split())
    before = finished(storage)
    failing.write_text("0")
    again = on_flaky_storage(start, storage, failing)
    assert again.wait() == 0, again.output
    assert_nothing_is_redone(before)
    assert_whole(storage)
    assert_results(storage, undisturbed)
