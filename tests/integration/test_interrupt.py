"""The real command as a real process: interrupted, then resumed to an undisturbed run's results."""

import signal
from pathlib import Path

import pytest

from prefsweep.orchestrator.state.sweep import Sweep, open_sweep

from .faults.harness import Run
from .small import OVERRIDES, run_inline, table, weights, with_artifacts_of

STEPS = ["training.max_steps=60", "training.logging_steps=1"]


@pytest.fixture(scope="module")
def undisturbed(finished_sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    storage = tmp_path_factory.mktemp("undisturbed") / "store"
    sweep = with_artifacts_of(finished_sweep, storage, *STEPS)
    run_inline(sweep)
    return sweep


@pytest.mark.parametrize(
    ("number", "cold"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGKILL, False)]
)
def test_an_interrupted_sweep_goes_on_to_the_same_results(
    number: signal.Signals, cold: bool, undisturbed: Sweep, warm_drivers: None, tmp_path: Path
) -> None:
    storage = tmp_path / "interrupted"
    run = Run(storage, "run", "quickstart", *OVERRIDES, *STEPS, "--inline", cold=cold)
    try:
        run.until(lambda: list(storage.glob("trials/*/metrics.jsonl")))
        run.process.send_signal(number)
        code = run.wait()
    finally:
        run.clean_up()
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 130, run.output
        assert "run the same command again to resume" in run.output
        assert not list((storage / "tmp").iterdir())

    resumed = Run(storage, "resume", "small", "--inline", cold=cold)
    assert resumed.wait() == 0, resumed.output
    assert "reference: cached" in resumed.output
    sweep = open_sweep("small", str(storage))
    assert weights(sweep) == weights(undisturbed)
    assert table(sweep) == table(undisturbed)
