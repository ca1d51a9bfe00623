"""A store on S3 (moto's server): a whole sweep, a driver that is killed, resumed from elsewhere."""

import signal
import time
from pathlib import Path

from prefsweep.orchestrator.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.store import Store
from prefsweep.orchestrator.watching.status import open_sweep

from ..ray_cluster import prefsweep
from ..small import OVERRIDES, small_sweep, table, weights

STEPS = ["training.max_steps=60", "training.logging_steps=1", "training.save_steps=20"]


def test_a_sweep_on_s3_whose_driver_is_killed_goes_on_from_another_folder(
    s3: str, tmp_path: Path
) -> None:
    undisturbed = small_sweep(tmp_path / "undisturbed", *STEPS)
    run_sweep(undisturbed, lambda: InlineCluster(undisturbed.spec.resources))

    words = ["--storage", s3, "--inline"]
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    process = prefsweep("run", "quickstart", *OVERRIDES, *STEPS, *words, cwd=first)
    wait_for_checkpoint(Store(s3), process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)

    resumed = prefsweep("resume", "small", *words, cwd=second)
    output = resumed.communicate(timeout=300)[0]
    assert resumed.returncode == 0, output
    assert "reference: found in the store" in output
    sweep = open_sweep("small", s3)
    assert weights(sweep) == weights(undisturbed)
    assert table(sweep) == table(undisturbed)
    assert not list(first.iterdir()) and not list(second.iterdir())


def wait_for_checkpoint(store: Store, process) -> None:
    deadline = time.monotonic() + 240
    while True:
        trials = store.names("trials")
        if any(store.names(store.trial(trial, "checkpoints")) for trial in trials):
            return
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.1)
