"""What `plan` and `doctor` say of groups: who is trained as one, what it saves, and why not."""

from dataclasses import asdict
from pathlib import Path

import pytest

from prefsweep.orchestrator.planning.groups import group_lines
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.tasks.probe import ProbeGroups
from prefsweep.workers.probe import GroupStep
from tests.integration.small import small_sweep

LORA = "training.lora={r: 4}"
FIVE = "grid=[{beta: [0.1, 0.2, 0.3, 0.4, 0.5], learning_rate: 1e-3}]"


def told(sweep: Sweep) -> str:
    return "; ".join(group_lines(sweep, sweep.trials))


def test_what_cannot_be_fused_is_told_with_its_reason(tmp_path: Path) -> None:
    line = told(small_sweep(tmp_path))
    assert "each trial is trained alone, because training.lora is not set" in line
    assert told(small_sweep(tmp_path, "training.fuse=off")) == ""
    one = "grid=[{beta: 0.1, learning_rate: 1e-3}]"
    assert told(small_sweep(tmp_path, LORA, one)) == "", "a single trial has no group"


def test_groups_of_the_size_that_was_asked_for_are_counted(tmp_path: Path) -> None:
    line = told(small_sweep(tmp_path, LORA, FIVE, "training.fuse=2"))
    assert "5 trials in 3 groups of 1 to 2, each of which has the policy in memory once" in line


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        ((0.1, 0.1, 0.125), "5 trials in 2 groups of 2 to 3, each"),
        ((0.1, 0.2, 0.4), "does not fit or is not faster, because one trial's batch fills the GPU"),
    ],
)
def test_with_auto_a_probe_says_what_pays(
    tmp_path: Path, seconds: tuple[float, ...], message: str
) -> None:
    sweep = small_sweep(tmp_path, LORA, FIVE)
    assert "on the CPU, each trial is trained alone; on a GPU, a few steps" in told(sweep)
    specs = tuple(trial.spec for trial in sweep.trials)
    steps = [asdict(GroupStep(2**i, s, 10)) for i, s in enumerate(seconds)]
    probe = ProbeGroups(sweep, specs, "H200")
    sweep.store.write_json(probe.path, {"steps": steps, "free": 80})
    line = told(sweep)
    assert message in line and "on H200" in line
    if "groups of" in message:
        assert "3.2x the steps a second of one trial at a time" in line
    assert probe.found()[0][0] == GroupStep(1, 0.1, 10)
