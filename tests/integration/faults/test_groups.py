"""The faults of trials, for trials that are trained as one (`training.fuse`), on the CPU."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prefsweep.orchestrator.state.sweep import Sweep
from tests.conftest import BuildOnce
from tests.integration.small import run_inline, table, with_artifacts_of

from .conftest import Start
from .harness import (
    TRAINING,
    Fault,
    assert_nothing_is_redone,
    assert_whole,
    finished,
    store_before,
    sweep_in,
    words,
)

FUSED = [
    "training.lora={r: 4}",
    "training.fuse=4",
    "grid=[{loss_type: [sigmoid, hinge], beta: [0.1, 0.5], learning_rate: 1e-3}]",
]
OUT_OF_MEMORY = "run_out_of_cuda_memory"


@pytest.fixture(scope="session")
def together(finished_sweep: Sweep, build_once: BuildOnce) -> Sweep:
    """Four trials as one group that nothing disturbs."""

    def build(storage: Path) -> None:
        run_inline(with_artifacts_of(finished_sweep, storage, *TRAINING, *FUSED))

    return sweep_in(build_once("together", build), *FUSED)


def adapters(sweep: Sweep) -> list[torch.Tensor]:
    """All numbers of each trial's adapter."""
    folders = [sweep.store.fetch(sweep.store.trial(t.trial_id, "weights")) for t in sweep.trials]
    values = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    return [torch.cat([each[name].flatten() for name in sorted(each)]) for each in values]


def assert_adapters(storage: Path, together: Sweep, tolerance: float) -> None:
    """Every adapter is the undisturbed group's, to rounding; bit for bit, and the table, at 0."""
    sweep = sweep_in(storage, *FUSED)
    for ours, theirs in zip(adapters(sweep), adapters(together), strict=True):
        assert (ours - theirs).abs().max().item() <= tolerance
    if not tolerance:
        assert table(sweep) == table(together)


def statuses(storage: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in storage.glob("trials/*/status.json")]


@pytest.mark.parametrize(
    ("stage", "after", "tolerance"),
    [
        ("group", 5, 0.0),
        ("publishing", 5, 1e-6),  # of four trials, one has its second checkpoint
        ("evaluation", 1, 0.0),  # the first of them is evaluated
    ],
)
def test_a_group_that_is_killed_is_continued_by_the_same_command(
    stage: str, after: int, tolerance: float, together: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before("training", together, tmp_path / "store")
    command = words("--inline", *FUSED)
    run = start(storage, *command, faults=[Fault(stage, after=after)])
    run.held()
    before = finished(storage)
    run.kill()
    again = start(storage, *command)
    assert again.wait() == 0, again.output
    assert_nothing_is_redone(before)
    assert_whole(storage)
    assert_adapters(storage, together, tolerance)


def test_a_worker_that_has_a_group_and_is_killed_is_replaced(
    together: Sweep, start: Start, tmp_path: Path
) -> None:
    """On Ray: two groups of two on two CPUs, or one of four on one."""
    storage = store_before("training", together, tmp_path / "store")
    run = start(storage, *words(*FUSED), faults=[Fault("group", after=5)])
    victim = run.held()
    assert victim != run.process.pid
    os.kill(victim, signal.SIGKILL)
    run.go()
    assert run.wait() == 0, run.output
    assert_whole(storage)
    assert_adapters(storage, together, 1e-5)
    manifests = [json.loads(p.read_text()) for p in storage.glob("trials/*/weights/manifest.json")]
    assert {manifest["notes"]["group"] for manifest in manifests} <= {2.0, 4.0}


def test_out_of_memory_halves_the_group_and_no_batch(
    together: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before("training", together, tmp_path / "store")
    fault = Fault("group", OUT_OF_MEMORY, after=2)
    run = start(storage, *words("--inline", *FUSED), faults=[fault])
    assert run.wait() == 0, run.output
    assert "4 trials cannot be trained together" in " ".join(run.output.split())
    assert_whole(storage)
    trials = statuses(storage)
    assert {(t["status"], t["largest_group"], t["halvings"]) for t in trials} == {
        ("succeeded", 2, 0)
    }
    assert_adapters(storage, together, 1e-5)


def test_trials_that_fit_neither_together_nor_alone_fail_with_advice(
    together: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before("training", together, tmp_path / "store")
    faults = [Fault(stage, OUT_OF_MEMORY, times=1000) for stage in ("group", "training")]
    run = start(storage, *words("--inline", *FUSED), faults=faults)
    assert run.wait() == 1, run.output
    failures = [status["failure"] for status in statuses(storage)]
    assert {failure["kind"] for failure in failures} == {"out_of_memory"}
    assert all("max_length" in failure["advice"] for failure in failures)
    again = start(storage, *words("--inline", "--restart-errored", *FUSED))
    assert again.wait() == 0, again.output
    assert_whole(storage)
    assert_adapters(storage, together, 0.0)


def test_a_disk_that_is_full_for_a_group_fails_its_trials_and_room_lets_them_go_on(
    together: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before("training", together, tmp_path / "store")
    before = finished(storage)
    fault = Fault("group", "limit_files", bytes=10_000)  # less than a checkpoint takes
    full = start(storage, *words("--inline", "--until", "trials", *FUSED), faults=[fault])
    assert full.wait() == 1, full.output
    for status in statuses(storage):
        assert (status["status"], status["failure"]["kind"]) == ("failed", "transient")
        assert "free space" in status["failure"]["advice"]
    again = start(storage, *words("--inline", *FUSED))
    assert again.wait() == 0, again.output
    assert_nothing_is_redone(before)
    assert_whole(storage)
    assert_adapters(storage, together, 0.0)
