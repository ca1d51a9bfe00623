"""W&B without a key, with an endpoint that is dead, and with its process killed: no sweep minds."""

import os
import signal
import socket
from pathlib import Path

import pytest

from prefsweep.orchestrator.state.sweep import Sweep

from .conftest import Start
from .harness import Fault, assert_results, assert_whole, store_before, words

KEY = "0" * 40


def nowhere() -> str:
    """An address of this machine where nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{found.getsockname()[1]}"


@pytest.mark.parametrize("case", ["no key", "dead endpoint"])
def test_the_sweep_is_done_and_recorded_offline(
    case: str, undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before("training", undisturbed, tmp_path / "store")
    env = {"WANDB_BASE_URL": nowhere(), "HOME": str(tmp_path)}
    env["WANDB_API_KEY"] = KEY if case == "dead endpoint" else ""
    run = start(storage, *words("--inline", "tracking.wandb.mode=online"), env=env, cold=True)
    assert run.wait() == 0, run.output
    assert "offline" in run.output, "says so once"
    assert list(storage.glob("sweeps/small/wandb/offline-run-*"))
    assert_whole(storage)
    assert_results(storage, undisturbed)


def test_a_killed_process_of_wandb_is_survived(
    undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before("training", undisturbed, tmp_path / "store")
    run = start(
        storage,
        *words("--inline", "tracking.wandb.mode=offline"),
        faults=[Fault("training", after=4)],
        env={"HOME": str(tmp_path)},
        cold=True,
    )
    run.held()
    for child in run.until(lambda: run.children("wandb-core") or run.children("gpu_stats")):
        os.kill(child.pid, signal.SIGKILL)
    run.go()
    assert run.wait() == 0, run.output
    assert "W&B failed" in run.output and "Traceback" not in run.output, "says so, and goes on"
    assert_whole(storage)
    assert_results(storage, undisturbed)
