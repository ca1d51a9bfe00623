"""events: what happened between two looks at a sweep, a line each."""

from dataclasses import replace

from prefsweep.orchestrator.display.events import changes
from prefsweep.sweeps.records import (
    DriverStatus,
    Failure,
    StageStatus,
    Status,
    SweepStatus,
    TrialStatus,
)

DRIVER = DriverStatus("a-host", 7, 0.0, True)
STAGES = [
    StageStatus("prompts", Status.SUCCEEDED, "x", 5, 1.0, 1, 1),
    StageStatus("scores", Status.RUNNING, "x", 6, None, 1, 4, 2.5, 75.0),
]
TRIALS = [TrialStatus(name, name, Status.PENDING, "x") for name in ("one", "two")]
BEFORE = SweepStatus("demo", STAGES, TRIALS, driver=DRIVER)


def test_the_first_look_tells_how_the_sweep_stands() -> None:
    assert list(changes(None, BEFORE)) == [
        "demo: 1 of 2 stages done; trials: 2 pending",
        "run by pid 7 on a-host",
    ]
    assert list(changes(BEFORE, BEFORE)) == []


def test_shards_stages_and_trials_are_told_as_they_move() -> None:
    stages = [STAGES[0], replace(STAGES[1], num_done=2, rows=12)]
    metrics: dict[str, float | None] = {"reward_mean": 1.25, "kl": None, "win_rate": 0.5}
    trials = [replace(TRIALS[0], status=Status.SUCCEEDED, metrics=metrics), TRIALS[1]]
    assert list(changes(BEFORE, replace(BEFORE, stages=stages, trials=trials))) == [
        "scores: running 2/4, 12 rows, 2.5 rows/s, 1m15s to go",
        "trial one succeeded: reward_mean 1.250 win_rate 0.500 (1 of 2 ended)",
    ]


def test_failures_are_told_as_they_happen_on_one_line_without_control_characters() -> None:
    failure = Failure("deterministic", "loss is nan\x1b[31m\nat step 5")
    failed = replace(TRIALS[1], name="two\x07", status=Status.FAILED, failure=failure)
    (line,) = changes(BEFORE, replace(BEFORE, trials=[TRIALS[0], failed]))
    assert line == r"trial two\x07 failed: loss is nan\x1b[31m at step 5 (1 of 2 ended)"


def test_the_drivers_death_and_leaving_are_told() -> None:
    dead = replace(BEFORE, driver=replace(DRIVER, alive=False))
    assert list(changes(BEFORE, dead)) == ["its driver, pid 7 on a-host, has died"]
    stopped = replace(BEFORE, driver=replace(DRIVER, responding=False))
    (line,) = changes(BEFORE, stopped)
    assert line == "its driver, pid 7 on a-host, does not respond: its process is stopped"
    assert list(changes(stopped, BEFORE)) == ["run by pid 7 on a-host"]
    assert list(changes(BEFORE, replace(BEFORE, driver=None))) == ["the sweep is no longer running"]
