"""Trials that are stopped, or whose checkpoints are damaged, end as undisturbed ones do."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from prefsweep.orchestrator.state.stop import request_stop
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.state.trial_record import trial_status
from prefsweep.orchestrator.tasks import attempts, checkpoints
from prefsweep.orchestrator.tasks.attempts import run_trial
from prefsweep.orchestrator.tasks.cache import WorkerCache
from prefsweep.sweeps.records import Status

from .in_process import (
    Fault,
    assert_undisturbed,
    metrics,
    nothing,
    run,
    stop_in_step,
)


@pytest.mark.parametrize("step", [1, 3, 4, 8])
def test_a_stopped_trial_goes_on_to_the_weights_log_and_table_of_an_undisturbed_one(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    stop_in_step(sweep, step, monkeypatch)
    found = checkpoints.newest_checkpoint(sweep, sweep.trials[0])
    assert found is not None and found.step == step
    fault = Fault(monkeypatch, nothing)
    assert run(sweep).attempts == 2
    assert fault.steps == list(range(step + 1, 10))
    assert_undisturbed(sweep, undisturbed)


def test_a_stop_in_the_evaluation_publishes_nothing_and_repeats_only_it(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, asked = sweep.trials[0], [False]
    plain = attempts.evaluate_trained

    def late(*args: Any, **kwargs: Any) -> Any:
        asked[0] = True
        return plain(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(attempts, "polled_stop", lambda store, name: lambda: asked[0])
        patch.setattr(attempts, "evaluate_trained", late)
        run_trial(WorkerCache(sweep), trial)
    assert trial_status(sweep, trial).status == Status.INTERRUPTED
    assert sweep.store.names(sweep.store.trial(trial.trial_id, "evaluations")) == []
    fault = Fault(monkeypatch, nothing)
    run(sweep)
    assert fault.steps == []
    assert_undisturbed(sweep, undisturbed)


def test_a_pending_trial_sees_a_stop_request_and_does_nothing(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault(monkeypatch, nothing)
    request_stop(sweep.store, sweep.spec.name)
    run_trial(WorkerCache(sweep), sweep.trials[0])
    assert fault.steps == []
    assert trial_status(sweep, sweep.trials[0]).status == Status.INTERRUPTED


FILES = {
    "manifest.json",
    "metrics.jsonl",
    "model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
    "window.json",
}


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def altered(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_whatever_is_damaged_in_a_checkpoint_the_one_before_is_used(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of checkpoints 4 and 5: each file of the newer one missing, truncated and altered."""
    trial = sweep.trials[0]
    stop_in_step(sweep, 5, monkeypatch)
    folder = Path(sweep.store.display(sweep.store.trial(trial.trial_id, "checkpoints")))
    assert sorted(path.name for path in folder.iterdir()) == ["step-000004", "step-000005"]
    newest = folder / "step-000005"
    assert {path.name for path in newest.iterdir()} >= FILES
    shutil.copytree(newest, tmp_path / "whole")
    for name in sorted(FILES):
        for damage in (Path.unlink, truncated, altered):
            if name == "manifest.json" and damage is altered:
                continue  # a changed date does no harm; what matters in it is below
            damage(newest / name)
            found = checkpoints.newest_checkpoint(sweep, trial)
            assert found is not None and found.step == 4, (name, damage)
            assert not newest.exists()
            shutil.copytree(tmp_path / "whole", newest)
    (newest / "optimizer.pt").unlink()
    manifest = json.loads((newest / "manifest.json").read_text())
    del manifest["files"]["optimizer.pt"]
    (newest / "manifest.json").write_text(json.dumps(manifest))
    fault = Fault(monkeypatch, nothing)
    run(sweep)
    assert fault.steps == [5, 6, 7, 8, 9]
    assert_undisturbed(sweep, undisturbed)


def test_without_a_whole_checkpoint_training_starts_from_scratch(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_step(sweep, 5, monkeypatch)
    path = Path(sweep.store.display(sweep.store.trial(sweep.trials[0].trial_id)))
    for folder in (path / "checkpoints").iterdir():
        altered(folder / "optimizer.pt")
    (path / "checkpoints" / "notes").mkdir()
    fault = Fault(monkeypatch, nothing)
    run(sweep)
    assert fault.steps == list(range(1, 10))
    assert_undisturbed(sweep, undisturbed)


@pytest.mark.parametrize(
    "tail", [b'{"step": 5.0, "lo', b'{"step": 6.0}\n\xff\n[1]\n{"step": "7"}\n']
)
def test_a_broken_metrics_log_goes_on_from_the_checkpoints_own(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch, tail: bytes
) -> None:
    stop_in_step(sweep, 5, monkeypatch)
    path = sweep.store.trial(sweep.trials[0].trial_id, "metrics.jsonl")
    sweep.store.write(path, (metrics(sweep) or b"")[20:] + tail)
    run(sweep)
    assert_undisturbed(sweep, undisturbed)


def test_weights_damaged_before_the_evaluation_are_trained_again(
    sweep: Sweep, undisturbed: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("no evaluation")

    trial = sweep.trials[0]
    with monkeypatch.context() as patch:
        patch.setattr(attempts, "evaluate_trained", broken)
        run_trial(WorkerCache(sweep), trial)
    file = sweep.store.display(sweep.store.trial(trial.trial_id, "weights", "model.safetensors"))
    altered(Path(file))
    fault = Fault(monkeypatch, nothing)
    assert run(sweep, "resume").status == Status.SUCCEEDED
    assert fault.steps == list(range(1, 10))
    assert_undisturbed(sweep, undisturbed)
