"""The real command as a real process: interrupted, then resumed to an undisturbed run's results."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefsweep.orchestrator.state.sweep import Sweep, open_sweep

from .small import OVERRIDES, run_inline, table, weights, with_artifacts_of

STEPS = ["training.max_steps=60", "training.logging_steps=1"]


def start(storage: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "prefsweep.orchestrator.commands.cli", *words]
    return subprocess.Popen(
        [*command, "--storage", str(storage)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )


def wait_for(pattern: str, folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no {pattern} appeared"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(finished_sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    storage = tmp_path_factory.mktemp("undisturbed") / "store"
    sweep = with_artifacts_of(finished_sweep, storage, *STEPS)
    run_inline(sweep)
    return sweep


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_sweep_goes_on_to_the_same_results(
    number: signal.Signals, undisturbed: Sweep, tmp_path: Path
) -> None:
    storage = tmp_path / "interrupted"
    process = start(storage, "run", "quickstart", *OVERRIDES, *STEPS, "--inline")
    wait_for("trials/*/metrics.jsonl", storage, process)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    if number != signal.SIGKILL:
        assert process.returncode == 130, output
        assert "run the same command again to resume" in output
        assert not list((storage / "tmp").iterdir())

    resumed = start(storage, "resume", "small", "--inline")
    output = resumed.communicate(timeout=240)[0]
    assert resumed.returncode == 0, output
    assert "reference: found in the store" in output
    sweep = open_sweep("small", str(storage))
    assert weights(sweep) == weights(undisturbed)
    assert table(sweep) == table(undisturbed)
