"""A trial on which two runs work at once ends as an undisturbed one does."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.state.trial_record import trial_status
from prefsweep.orchestrator.store.store import Store
from prefsweep.orchestrator.tasks.attempts import run_trial
from prefsweep.orchestrator.tasks.cache import WorkerCache
from prefsweep.sweeps.records import Status
from prefsweep.workers.train import PreparedDPOTrainer

from .in_process import (
    Fault,
    assert_undisturbed,
    log_text,
    metrics,
    nothing,
    run,
    stop_in_step,
)


def test_a_trial_that_another_run_ends_first_is_taken_as_it_is(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In step 5 come the weights and the log of the other run, which goes on to an evaluation."""
    trial = sweep.trials[0]
    folders = [Path(s.store.display(s.store.trial(trial.trial_id))) for s in (undisturbed, sweep)]

    def other_run_ends(step: int) -> None:
        if step == 5:
            shutil.copy(folders[0] / "metrics.jsonl", folders[1])
            shutil.copytree(folders[0] / "weights", folders[1] / "weights")

    monkeypatch.setattr("prefsweep.orchestrator.state.stop.POLL_S", 0.0)
    fault = Fault(monkeypatch, other_run_ends)
    run_trial(WorkerCache(sweep), trial)
    assert fault.steps == [1, 2, 3, 4, 5]
    assert trial_status(sweep, trial).status == Status.SUCCEEDED
    assert "another run has trained this trial" in log_text(sweep)
    run(sweep)
    assert_undisturbed(sweep, undisturbed)


def test_a_checkpoint_that_another_run_deletes_while_it_is_read_is_no_failure(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_step(sweep, 5, monkeypatch)
    plain = PreparedDPOTrainer._load_from_checkpoint

    def deleted(trainer: Any, folder: str, *args: Any, **kwargs: Any) -> Any:
        if folder.endswith("5"):
            shutil.rmtree(folder)
        return plain(trainer, folder, *args, **kwargs)

    monkeypatch.setattr(PreparedDPOTrainer, "_load_from_checkpoint", deleted)
    fault = Fault(monkeypatch, nothing)
    assert run(sweep).status == Status.SUCCEEDED
    assert fault.steps == [5, 6, 7, 8, 9]
    assert_undisturbed(sweep, undisturbed)


def test_what_another_run_writes_to_the_log_of_a_trial_is_gone_at_its_end(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sweep.store.trial(sweep.trials[0].trial_id, "metrics.jsonl")

    def write_twice(step: int) -> None:
        if step in (4, 9):
            sweep.store.append(path, (metrics(sweep) or b"").splitlines(keepends=True)[-1])

    publish = Store.publish

    def publish_late(store: Store, path: str, *of_what: Any) -> None:
        if path.endswith("/weights"):
            write_twice(9)
        publish(store, path, *of_what)

    Fault(monkeypatch, write_twice)
    monkeypatch.setattr(Store, "publish", publish_late)
    run(sweep)
    assert_undisturbed(sweep, undisturbed)
