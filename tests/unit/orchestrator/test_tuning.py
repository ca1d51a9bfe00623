"""Launch after launch, with a launch that is told what happens in it (no Ray)."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from prefsweep.orchestrator.execution import tuning
from prefsweep.orchestrator.execution.membership import Members
from prefsweep.orchestrator.state.stop import request_stop
from prefsweep.orchestrator.state.sweep import Sweep, Trial
from prefsweep.orchestrator.state.trial_record import TrialRecord, read_document, trial_status
from prefsweep.orchestrator.store.scratch import is_in_use, scratch_home
from prefsweep.sweeps.records import Failure, Status
from tests.integration.small import small_sweep

Step = Callable[[Sweep, list[Trial]], str]
KILLED = (
    "Caught unexpected exception: 1 worker(s) were killed due to the node running low on memory. "
    "Memory on the node (IP: 192.0.2.7, ID: {node}) was 9.8GB used / 10GB limit (0.98)\n"
    "Considered workers: [\nSelected to kill: (Actor(5): job ID=1, "
    "pid={pid}, actual memory used=9.5GB, worker ID=7)\n"
    "(Actor(6): job ID=1, pid=101, actual memory used=0.1GB, worker ID=8)\n]"
)
"""What Ray 2.60 says, without its advice."""
NODE = "59c2f65d74"


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


def begun(sweep: Sweep, trial: Trial, pid: int, node: str = NODE) -> None:
    """The trial as a worker leaves it that dies in its first attempt."""
    TrialRecord(sweep, trial).begin(0)
    path = sweep.store.trial(trial.trial_id, "status.json")
    document = read_document(sweep, trial) | {"worker": {"host": "h", "pid": pid, "node": node}}
    sweep.store.write_json(path, document)


def all_killed(sweep: Sweep, trials: list[Trial]) -> str:
    for pid, trial in enumerate(trials, start=100):
        begun(sweep, trial, pid)
    return KILLED.format(pid=100, node=NODE)


def all_succeed(sweep: Sweep, trials: list[Trial]) -> str:
    for trial in trials:
        TrialRecord(sweep, trial).write(Status.SUCCEEDED)
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


def test_a_group_that_was_killed_for_memory_is_halved_and_its_batch_is_not(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, launched: list[list[str]]
) -> None:
    """Three times, which is the cap of a trial alone."""

    def group_killed(sweep: Sweep, trials: list[Trial]) -> str:
        for trial in trials:
            begun(sweep, trial, 100)
            path = sweep.store.trial(trial.trial_id, "status.json")
            sweep.store.write_json(path, read_document(sweep, trial) | {"group": 8})
        return KILLED.format(pid=100, node=NODE)

    play(monkeypatch, launched, group_killed, group_killed, group_killed, all_succeed)
    tuning.tune_trials(sweep, sweep.trials, 0)
    assert len(launched) == 4
    for trial in sweep.trials:
        document = read_document(sweep, trial)
        assert (document["largest_group"], document["halvings"]) == (4, 0)
        assert document["last_failure"]["kind"] == "out_of_memory"


def test_who_is_always_killed_for_memory_fails_alone_after_its_cap(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, launched: list[list[str]]
) -> None:
    guilty, beside = sweep.trials

    def killed_until_alone(sweep: Sweep, trials: list[Trial]) -> str:
        return all_killed(sweep, trials) if guilty in trials else all_succeed(sweep, trials)

    play(monkeypatch, launched, killed_until_alone)
    tuning.tune_trials(sweep, sweep.trials, 0)
    assert launched == [[guilty.name, beside.name]] * 3 + [[beside.name]]
    failed = trial_status(sweep, guilty)
    assert failed.status == Status.FAILED and failed.failure is not None
    assert failed.failure.kind == "out_of_memory" and "Ray killed its worker" in str(failed.failure)
    assert read_document(sweep, guilty)["halvings"] == 2
    assert read_document(sweep, beside)["status"] == Status.SUCCEEDED


def test_each_that_is_killed_for_memory_has_a_cap_of_its_own(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, launched: list[list[str]]
) -> None:
    def in_turn(sweep: Sweep, trials: list[Trial]) -> str:
        all_killed(sweep, trials)
        return KILLED.format(pid=100 + len(launched) % len(trials), node=NODE)

    play(monkeypatch, launched, in_turn)
    tuning.tune_trials(sweep, sweep.trials, 0)
    assert list(map(len, launched)) == [2, 2, 2, 2, 2, 1]
    failures = [trial_status(sweep, trial).failure for trial in sweep.trials]
    assert {failure and failure.kind for failure in failures} == {"out_of_memory"}


def test_the_same_process_id_on_another_node_is_not_to_blame(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, launched: list[list[str]]
) -> None:
    def one_killed(sweep: Sweep, trials: list[Trial]) -> str:
        for trial, node in zip(trials, ("another", NODE), strict=True):
            begun(sweep, trial, 100, node)
        return KILLED.format(pid=100, node=NODE)

    play(monkeypatch, launched, one_killed, all_succeed)
    tuning.tune_trials(sweep, sweep.trials, 0)
    assert [read_document(sweep, trial)["halvings"] for trial in sweep.trials] == [0, 1]


def test_launches_that_end_for_memory_without_a_trial_to_blame_count(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, launched: list[list[str]]
) -> None:
    play(monkeypatch, launched, lambda sweep, trials: KILLED.format(pid=7, node=NODE))
    tuning.tune_trials(sweep, sweep.trials, 0)
    assert len(launched) == 3


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
        assert "3 launches in a row made no progress. it hung" in status.failure.message


def test_a_launch_that_gets_further_does_not_count(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, launched: list[list[str]]
) -> None:
    def one_more_halving(sweep: Sweep, trials: list[Trial]) -> str:
        state = TrialRecord(sweep, trials[-1])
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
        TrialRecord(sweep, trials[0]).write(Status.FAILED, Failure("deterministic", "nan"))
        return ""

    play(monkeypatch, launched, first_fails, all_succeed)
    tuning.tune_trials(sweep, sweep.trials, 0)
    assert launched[1] == [sweep.trials[1].name]


def test_after_a_stop_request_nothing_is_launched_any_more(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, launched: list[list[str]]
) -> None:
    def stopped(sweep: Sweep, trials: list[Trial]) -> str:
        request_stop(sweep.store, sweep.spec.name)
        TrialRecord(sweep, trials[0]).write(Status.SUCCEEDED)
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
    state = TrialRecord(sweep, first)
    state.larger_shares = 3
    state.write(Status.PENDING)
    assert tuning.shares(sweep, sweep.trials, 0.25) == {first.trial_id: 1.0, second.trial_id: 0.25}
    assert tuning.shares(sweep, sweep.trials, 2.0)[first.trial_id] == 2.0
    assert tuning.shares(sweep, sweep.trials, 0.0)[first.trial_id] == 0.0


def test_what_tune_writes_lies_where_it_is_deleted_even_if_the_driver_is_killed(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import tune

    folders: list[Path] = []

    class Tuner:
        def __init__(self, *_: object, run_config: tune.RunConfig, **__: object) -> None:
            folders.append(Path(str(run_config.storage_path)))

        def fit(self) -> SimpleNamespace:
            assert is_in_use(folders[0].name)
            return SimpleNamespace(errors=[])

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(tune, "Tuner", Tuner)
    assert tuning._launch(sweep, sweep.trials, 0, 0.0, None) == ""
    assert folders[0].parent == scratch_home() and not folders[0].exists()
