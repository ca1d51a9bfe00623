"""A second run of a sweep: beside the first, after its end, with another spec, after a stop."""

import fcntl
import json
import os
import pty
import signal
import socket
import termios
import time
from pathlib import Path

import psutil
import pytest

from prefsweep.orchestrator.execution.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.sweeps import identity
from prefsweep.sweeps.records import Status
from tests.integration.small import table

from .conftest import Start
from .harness import (
    Fault,
    Finished,
    assert_nothing_is_redone,
    assert_results,
    assert_whole,
    finished,
    store_before,
    sweep_in,
    words,
)

DAY_S = 86_400


def all_files(storage: Path) -> Finished:
    """Every file but the heartbeat of the driver that runs."""
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in storage.rglob("*")
        if path.is_file() and not path.name.startswith("lease.json")
    }


@pytest.mark.parametrize("ahead_s", [-DAY_S])
def test_a_second_driver_is_refused_and_told_who_runs_whatever_its_clock_says(
    ahead_s: int, undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before("training", undisturbed, tmp_path / "store")
    first = start(storage, *words("--inline"), faults=[Fault("training", after=3)])
    first.held()
    before = all_files(storage)
    clock = {"PREFSWEEP_TEST_CLOCK_S": str(ahead_s)}
    second = start(storage, *words("--inline"), env=clock)
    assert second.wait() == 2, second.output
    message = " ".join(second.output.split())
    assert f"host {socket.gethostname()}, pid {first.process.pid}, since " in message
    assert "Traceback" not in message
    assert all_files(storage) == before
    first.go()
    assert first.wait() == 0, first.output
    assert_results(storage, undisturbed)


@pytest.mark.parametrize("stage", ["completions", "reference", "training", "evaluation"])
def test_two_sweeps_of_one_store_may_make_the_same_thing_at_once(
    stage: str, undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    """Both are held in the middle of the same shard or trial, so that both make all of it."""
    storage = store_before(stage, undisturbed, tmp_path / "store")
    grid = "grid=[{loss_type: [sigmoid, ipo], beta: [0.1], learning_rate: 1e-3}]"
    fault = Fault(stage, after={"completions": 1, "training": 3}.get(stage, 0))
    runs = [
        start(storage, *words("--inline", *others), faults=[fault])
        for others in ([], ["name=other", grid])
    ]
    for run in runs:
        run.held()
    for run in runs:
        run.go()
    for run in runs:
        assert run.wait() == 0, run.output
        assert "damaged" not in run.output
    assert_whole(storage)
    assert_results(storage, undisturbed)
    shared = undisturbed.trials[0]
    other = sweep_in(storage, "name=other", grid)
    rows = [[row[:20] for row in table(sweep)[:2]] for sweep in (other, undisturbed)]
    assert rows[0] == rows[1], "later columns compare with the other trials"
    path = undisturbed.store.trial(shared.trial_id, "metrics.jsonl")
    assert other.store.read(path) == undisturbed.store.read(path)


@pytest.mark.parametrize("ahead_s", [DAY_S])
def test_the_lease_of_a_dead_driver_is_taken_over_whatever_the_clock_says(
    ahead_s: int, undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before("training", undisturbed, tmp_path / "store")
    first = start(
        storage,
        *words("--inline"),
        faults=[Fault("training", after=3)],
        env={"PREFSWEEP_TEST_CLOCK_S": str(ahead_s)},
    )
    first.held()
    first.kill()
    second = start(storage, *words("--inline"))
    assert second.wait() == 0, second.output
    assert f"pid {first.process.pid}" in second.output, "says whom it takes over from"
    assert_results(storage, undisturbed)


def test_a_complete_sweep_is_found_and_nothing_is_touched(
    undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = tmp_path / "store"
    first = start(store_before("report", undisturbed, storage), *words("--inline"))
    assert first.wait() == 0, first.output
    before = {
        path: times
        for path, times in all_files(storage).items()
        if {"artifacts", "trials", "report"} & set(path.parts)
    }
    again = start(storage, *words())
    assert again.wait() == 0, again.output
    assert "trials: 0 to run, 2 cached" in again.output
    assert {path: all_files(storage)[path] for path in before} == before
    assert not again.children("raylet")


def test_another_spec_under_the_same_name_is_explained_and_never_mixed(
    undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before("report", undisturbed, tmp_path / "store")
    changed = "pairs.min_margin=0.0001"
    first = start(storage, *words("--inline"))
    assert first.wait() == 0, first.output
    before = finished(storage)
    plan = start(storage, "plan", *words(changed)[1:])
    assert plan.wait() == 0, plan.output
    assert "pairs.min_margin" in plan.output, "says which part of the identity changed"
    again = start(storage, *words(changed, "--inline"))
    assert again.wait() == 0, again.output
    assert "completions: cached" in again.output
    assert "trials: 2 to run, 0 cached" in again.output
    assert_nothing_is_redone(before)
    assert_whole(storage)
    back = start(storage, *words("--inline"))
    assert back.wait() == 0, back.output
    assert "trials: 0 to run, 2 cached" in back.output
    assert_results(storage, undisturbed)


def test_another_version_of_a_stage_makes_it_and_what_follows_anew(
    undisturbed: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = store_before("report", undisturbed, tmp_path / "store")
    before = finished(storage)
    monkeypatch.setattr(identity, "STAGE_VERSIONS", {**identity.STAGE_VERSIONS, "reference": 1000})
    sweep = sweep_in(storage)
    assert sweep.path("pairs") == undisturbed.path("pairs")
    assert sweep.path("reference") != undisturbed.path("reference")
    results = run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources))
    assert [result.status for result in results] == [Status.SUCCEEDED] * 3
    assert_nothing_is_redone(before)
    assert {t.trial_id for t in sweep.trials}.isdisjoint(t.trial_id for t in undisturbed.trials)


@pytest.mark.parametrize(
    ("number", "inline"), [(signal.SIGINT, []), (signal.SIGTERM, ["--inline"])]
)
def test_a_sweep_interrupted_while_trials_run_is_resumed_to_the_same_table(
    number: signal.Signals, inline: list[str], undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before("training", undisturbed, tmp_path / "store")
    run = start(storage, *words(), faults=[Fault("training", after=3)])
    run.held()
    before = finished(storage)
    os.kill(run.process.pid, number)
    run.until(lambda: "stopping" in run.output)
    run.go()
    assert run.wait() == 130, run.output
    assert "resume small" in run.output
    assert_whole(storage)
    resumed = start(storage, "resume", "small", *inline)
    assert resumed.wait() == 0, resumed.output
    assert_nothing_is_redone(before)
    assert_whole(storage)
    assert_results(storage, undisturbed)


def test_a_lost_terminal_ends_a_run_cleanly(
    undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    """As when an ssh connection breaks: SIGHUP for all, and an error for whoever prints."""
    storage = store_before("training", undisturbed, tmp_path / "store")
    master, slave = pty.openpty()

    def on_the_terminal() -> None:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        os.dup2(slave, 2)  # the log, on stdout, is read by this test

    run = start(storage, *words(), faults=[Fault("training", after=3)], in_child=on_the_terminal)
    os.close(slave)
    worker = run.held()
    before = finished(storage)
    os.close(master)
    run.until(lambda: "SIGHUP: stopping" in run.output)
    assert psutil.pid_exists(worker), "what runs is finished first"
    run.go()
    assert run.wait() == 130, run.output
    assert_whole(storage)
    assert list(storage.glob("trials/*/checkpoints/step-*")), "what was trained is kept"
    state = json.loads((storage / "sweeps" / "small" / "state.json").read_text())
    assert state["status"] == "interrupted"
    resumed = start(storage, "resume", "small", "--inline")
    assert resumed.wait() == 0, resumed.output
    assert_nothing_is_redone(before)
    assert_results(storage, undisturbed)


def test_prefsweep_stop_ends_a_run_cleanly(
    undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before("training", undisturbed, tmp_path / "store")
    run = start(storage, *words("--inline"), faults=[Fault("training", after=3)])
    run.held()
    stop = start(storage, "stop", "small")
    run.until(lambda: "stopping" in run.output)
    run.go()
    assert run.wait() == 130, run.output
    assert stop.wait() == 0, stop.output
    checkpoints = list(storage.glob("trials/*/checkpoints/step-*"))
    assert checkpoints, "what was trained is kept"
    resumed = start(storage, "resume", "small", "--inline")
    assert resumed.wait() == 0, resumed.output
    assert_results(storage, undisturbed)


def test_a_second_ctrl_c_ends_at_once(undisturbed: Sweep, start: Start, tmp_path: Path) -> None:
    storage = store_before("training", undisturbed, tmp_path / "store")
    run = start(storage, *words(), faults=[Fault("training", after=3)])
    run.held()
    run.process.send_signal(signal.SIGINT)
    run.until(lambda: "stopping" in run.output)
    time.sleep(0.5)  # closer ones count as one
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.output
    run.clean_up()
    again = start(storage, *words("--inline"))
    assert again.wait() == 0, again.output
    assert_results(storage, undisturbed)
