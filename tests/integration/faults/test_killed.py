"""Processes killed with SIGKILL, each in the middle of its stage."""

import os
import signal
from pathlib import Path

import pytest

from prefsweep.orchestrator.state.sweep import Sweep

from .conftest import Start
from .harness import (
    STAGES,
    Fault,
    assert_nothing_is_redone,
    assert_results,
    assert_whole,
    finished,
    store_before,
    words,
)

COLD = [("generator", "completions"), ("trial", "training")]
"""Of each kind one that starts as a user's does, and so do its driver and all others."""
WORKERS = [
    ("generator", "completions"),
    ("scorer", "scores"),
    ("pair task", "pairs"),
    ("reference actor", "reference"),
    ("trial", "training"),
    ("trial", "checkpoint"),
    ("trial", "evaluation"),
]
DRIVER = [
    *("policy", "reward", "prompts", "completions", "scores", "pairs", "reference", "untrained"),
    *("training", "checkpoint", "evaluation", "report"),
]
ON_RAY = ("completions", "training")
"""Where the driver's workers outlive it for a moment; in the other stages it does all itself."""
AFTER = {"completions": 1, "scores": 1, "training": 5, "checkpoint": 1}
"""Calls to let pass, so that there is something to lose."""


@pytest.mark.parametrize(("process", "stage"), WORKERS)
def test_a_killed_worker_is_replaced_and_its_work_done(
    process: str, stage: str, undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before(stage, undisturbed, tmp_path / "store")
    fault = Fault(stage, after=AFTER.get(stage, 0))
    run = start(storage, *words(), faults=[fault], cold=(process, stage) in COLD)
    victim = run.held()
    assert victim != run.process.pid
    before = finished(storage)
    os.kill(victim, signal.SIGKILL)
    run.go()
    assert run.wait() == 0, run.output
    assert_nothing_is_redone(before)
    assert_whole(storage)
    assert_results(storage, undisturbed)


@pytest.mark.parametrize("stage", DRIVER)
def test_a_killed_driver_is_continued_by_the_same_command(
    stage: str, undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before(stage, undisturbed, tmp_path / "store")
    command = words(*([] if stage in ON_RAY else ["--inline"]))
    run = start(storage, *command, faults=[Fault(stage, after=AFTER.get(stage, 0))])
    run.held()
    before = finished(storage)
    run.kill()
    again = start(storage, *command)
    assert again.wait() == 0, again.output
    for made in STAGES[: STAGES.index(stage) if stage in STAGES else None]:
        assert f"{made}: cached" in again.output
    assert_nothing_is_redone(before)
    assert_whole(storage)
    assert_results(storage, undisturbed)
