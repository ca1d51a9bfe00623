"""GPUs that Ray is told of and that are not there: who is given which, and how many share one."""

import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from prefsweep.orchestrator.execution.cluster import RayCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.tasks.probe import ProbeTrial
from prefsweep.sweeps.records import Status
from prefsweep.workers.probe import GpuMemory

from ..small import run_inline, small_sweep

ARMED, MET = "armed", "met"
FOUR = "grid=[{loss_type: sigmoid, beta: [0.1, 0.2, 0.3, 0.4], learning_rate: 1e-3}]"


class ProbeThatSaysHalf(ProbeTrial):
    """Stands for a card on which two trials fit."""

    def run(self) -> None:
        assert len(visible_gpus()) == 1, "the probe has a card"
        self.sweep.store.write_json(self.path, asdict(GpuMemory(peak=30, free=80, total=80)))


def visible_gpus() -> list[str]:
    return [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]


def met(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward that says which GPU its trial sees and waits until four have said so."""
    import time

    folder = Path(os.environ["MEETING_FOLDER"])
    if (folder / ARMED).exists():
        said = folder / MET / str(os.getpid())
        said.parent.mkdir(exist_ok=True)
        said.write_text(",".join(visible_gpus()))
        deadline = time.monotonic() + 240
        while len(list(said.parent.iterdir())) < 4:
            assert time.monotonic() < deadline, "four trials were not there at once"
            time.sleep(0.05)
    return [float(len(text)) for text in completions]


def test_four_half_gpu_trials_at_once_have_two_cards_as_a_probe_found(
    warm_workers: None, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("MEETING_FOLDER", str(tmp_path))
    reward = "reward={type: callable, function: 'tests.integration.faults.test_gpus:met'}"
    kept = ["resources.num_generators=1", "resources.num_scorers=1"]
    sweep = small_sweep(tmp_path / "store", reward, FOUR, *kept)

    def open_cluster() -> RayCluster:
        return RayCluster(sweep.spec.resources, num_cpus=4, num_gpus=2, probe=ProbeThatSaysHalf)

    run_inline(sweep, until="untrained")
    (tmp_path / ARMED).touch()
    results = run_sweep(sweep, open_cluster)
    assert [result.status for result in results] == [Status.SUCCEEDED] * 5
    seen = [file.read_text() for file in (tmp_path / MET).iterdir()]
    assert Counter(seen) == {"0": 2, "1": 2}
