"""Launch after launch, with a launch that is told what happens in it (no Ray)."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prefsweep.orchestrator import tuning
from prefsweep.orchestrator.machines.membership import Members
from prefsweep.orchestrator.recovery.stopping import request_stop
from prefsweep.orchestrator.recovery.trial_log import TrialLog, read_document
from prefsweep.orchestrator.sweep import Sweep, Trial
from prefsweep.orchestrator.watching.status import trial_status
from prefsweep.sweeps.records import Failure, Status
from tests.integration.small import small_sweep

Step = Callable[[Sweep, list[Trial]], str]
KILLED = (
    "Caught unexpected exception: 1 worker(s) were killed due to the node running low on memory. "
    "(actor ID: 5, name=ImplicitFunc.train, pid={pid}, actual memory used=9.5GB, worker ID=7)"
)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return small_sweep(tmp_path, "retries.base_delay_s=0", "retries.max_attempts=3")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    return []


def play(monkeypatch: pytest.MonkeyPatch, launched: list[list[str]], *steps: Step) -> None:
    """Each launch plays the next of `steps`, the last one for ever."""

    def launch(sweep: Sweep, trials: list[Trial], *rest: object) -> str:
        launched.append([trial.name for trial in trials])
        return steps[min(len(launched), len(steps)) - 1](sweep, trials)

    monkeypatch.setattr(tuning, "_launch", launch)


def begun(sweep: Sweep, trial: Trial, pid: int) -> None:
    """The trial as a worker leaves it that dies in its first attempt."""
    TrialLog(sweep, trial).begin(0)
    path = sweep.store.trial(trial.trial_id, "status.json")
    document = read_document(sweep, trial) | {"worker": {"host": "node", "pid": pid}}
    sweep.store.write_json(path, document)


def all_killed(sweep: Sweep, trials: list[Trial]) -> str:
    for pid, trial in enumerate(trials, start=100):
        begun(sweep, trial, pid)
    return KILLED.format(pid=100)


def all_succeed(sweep: Sweep, trials: list[Trial]) -> str:
    for trial in trials:
        TrialLog(sweep, trial).write(Status.SUCCEEDED)
    return ""


def nothing(sweep: Sweep, trials: list[Trial]) -> str:
    return "it hung"


def test_who_was_killed_for_memory_gets_half_the_batch_and_nobody_else_is_blamed(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, launched: list[list[str]]
) -> None:
    killed, beside = sweep.trials
    play(monkeypatch, launched, all_killed, all_succeed)
    tuning.tune_trials(sweep, sweep.trials, 0)
    assert launched == [[killed.name, beside.name]] * 2
    first, second = read_document(sweep, killed), read_document(sweep, beside)
    assert (first["halvings"], second["halvings"]) == (1, 0)
    assert first["last_failure"]["kind"] == "out_of_memory" and second["last_failure"] is None
    assert (first["fruitless"], second["fruitless"]) == (1, 0)


def test_launches_that_get_no_further_end_and_say_why(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, launched: list[list[str]]
) -> None:
    play(monkeypatch, launched, nothing)
    tuning.tune_trials(sweep, sweep.trials, 0)
    assert len(launched) == 3
    for trial in sweep.trials:
        status = trial_status(sweep, trial)
        assert status.status == Status.FAILED and status.failure is not None
        assert status.failure.kind == "transient"
        assert "3 launches in a row got no further. it hung" in status.failure.message


def test_a_launch_that_gets_further_does_not_count(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, launched: list[list[str]]
) -> None:
    def one_more_halving(sweep: Sweep, trials: list[Trial]) -> str:
        state = TrialLog(sweep, trials[-1])
        state.halvings += 1
        state.write(Status.PENDING)
        return "gave up"

    steps = [nothing, nothing, one_more_halving, nothing, nothing, all_succeed]
    play(monkeypatch, launched, *steps)
    tuning.tune_trials(sweep, sweep.trials, 0)
    assert len(launched) == 6


def test_a_launch_that_finds_a_node_that_may_not_work_does_not_count(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, launched: list[list[str]]
) -> None:
    members = Members(sweep.store, sweep.spec.name, "token", {})

    def refused(sweep: Sweep, trials: list[Trial]) -> str:
        members.kept_off.add(f"node {len(members.kept_off)}")
        return "node b has other versions"

    play(monkeypatch, launched, refused, refused, refused, refused, all_succeed)
    tuning.tune_trials(sweep, sweep.trials, 0, members=members)
    assert len(launched) == 5


def test_only_what_is_unfinished_is_launched_again(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, launched: list[list[str]]
) -> None:
    def first_fails(sweep: Sweep, trials: list[Trial]) -> str:
        TrialLog(sweep, trials[0]).write(Status.FAILED, Failure("deterministic", "nan"))
        return ""

    play(monkeypatch, launched, first_fails, all_succeed)
    tuning.tune_trials(sweep, sweep.trials, 0)
    assert launched[1] == [sweep.trials[1].name]


def test_after_a_stop_request_nothing_is_launched_any_more(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, launched: list[list[str]]
) -> None:
    def stopped(sweep: Sweep, trials: list[Trial]) -> str:
        request_stop(sweep.store, sweep.spec.name)
        TrialLog(sweep, trials[0]).write(Status.SUCCEEDED)
        return ""

    monkeypatch.setattr(
        tuning, "polled_stop", lambda store, name: lambda: store.read(f"sweeps/{name}/stop.json")
    )
    play(monkeypatch, launched, stopped)
    tuning.tune_trials(sweep, sweep.trials, 0)
    assert len(launched) == 1
    assert read_document(sweep, sweep.trials[1])["status"] == Status.INTERRUPTED


def test_a_share_is_doubled_up_to_a_whole_gpu(sweep: Sweep) -> None:
    first, second = sweep.trials
    state = TrialLog(sweep, first)
    state.larger_shares = 3
    state.write(Status.PENDING)
    assert tuning.shares(sweep, sweep.trials, 0.25) == {first.trial_id: 1.0, second.trial_id: 0.25}
    assert tuning.shares(sweep, sweep.trials, 2.0)[first.trial_id] == 2.0
    assert tuning.shares(sweep, sweep.trials, 0.0)[first.trial_id] == 0.0
