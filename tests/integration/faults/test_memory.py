"""Memory that runs out: a worker killed by Ray's memory monitor, and CUDA's error."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from prefsweep.orchestrator.state.sweep import Sweep

from .conftest import Start
from .harness import (
    Fault,
    assert_nothing_is_redone,
    assert_results,
    assert_whole,
    finished,
    store_before,
    sweep_in,
    words,
)

GIB = 2**30
HEADROOM_GIB = 2.5
"""What others on the machine may take meanwhile."""


@pytest.mark.alone
@pytest.mark.parametrize("stage", ["training", "completions"])
def test_a_worker_that_ray_kills_for_memory_is_replaced(
    stage: str, undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    """For real: the worker takes more than the threshold, which is set by what is used now."""
    memory = psutil.virtual_memory()
    used, hog = memory.total - memory.available, int(2 * HEADROOM_GIB * GIB)
    if memory.available < hog + GIB:
        pytest.skip(f"needs {hog / GIB + 1:.1f} GiB of free memory")
    storage = store_before(stage, undisturbed, tmp_path / "store")
    before = finished(storage)
    threshold = (used + HEADROOM_GIB * GIB) / memory.total
    run = start(
        storage,
        *words(*(["--until", "scores"] if stage == "completions" else [])),
        faults=[Fault(stage, "fill_memory", after=1, bytes=hog)],
        env={
            "RAY_memory_usage_threshold": f"{threshold:.4f}",
            "RAY_memory_monitor_refresh_ms": "50",
        },
    )
    assert run.wait() == 0, run.output
    assert list(run.folder.glob("claim-*")), "the worker never took the memory"
    rest = start(storage, *words("--inline"))
    assert rest.wait() == 0, rest.output
    assert_nothing_is_redone(before)
    assert_whole(storage)
    if stage == "completions":
        assert_results(storage, undisturbed)
    else:  # tried again with a smaller micro-batch: the same steps, summed in another order
        assert max(status["halvings"] for status in statuses(storage)) >= 1
        assert_losses(storage, undisturbed)


def statuses(storage: Path) -> list[dict[str, Any]]:
    """What every trial's status.json says."""
    return [json.loads(path.read_text()) for path in storage.glob("trials/*/status.json")]


def assert_losses(storage: Path, undisturbed: Sweep) -> None:
    """The losses of every trial are those of the undisturbed run, but for rounding."""
    sweep = sweep_in(storage)
    for trial in sweep.trials:
        ours, theirs = (
            [json.loads(line)["loss"] for line in (s.store.read(path) or b"").splitlines()]
            for s in (sweep, undisturbed)
            for path in [s.store.trial(trial.trial_id, "metrics.jsonl")]
        )
        assert ours == pytest.approx(theirs, abs=2e-3)


def test_cuda_out_of_memory_is_tried_again_with_less_at_a_time(
    undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before("training", undisturbed, tmp_path / "store")
    fault = Fault("training", "run_out_of_cuda_memory", after=2)
    run = start(storage, *words("--inline"), faults=[fault])
    assert run.wait() == 0, run.output
    assert_whole(storage)
    trials = statuses(storage)
    assert sorted(trial["halvings"] for trial in trials) == [0, 1]
    assert {trial["status"] for trial in trials} == {"succeeded"}
    assert_losses(storage, undisturbed)


def test_a_trial_that_never_fits_fails_with_advice_and_the_other_is_done(
    undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before("training", undisturbed, tmp_path / "store")
    fault = Fault("training", "run_out_of_cuda_memory", times=1000)
    run = start(storage, *words("--inline"), faults=[fault])
    assert run.wait() == 1, run.output
    failures = [status["failure"] for status in statuses(storage)]
    assert {failure["kind"] for failure in failures} == {"out_of_memory"}
    assert all("max_length" in failure["advice"] for failure in failures)
    again = start(storage, *words("--inline", "--restart-errored"))
    assert again.wait() == 0, again.output
    assert_whole(storage)
    assert_results(storage, undisturbed)
