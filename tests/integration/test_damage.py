"""Whatever in the store is damaged: the same command makes it again, and nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from prefsweep.orchestrator.driver.run import Run
from prefsweep.orchestrator.execution.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.state.sweep import UNTRAINED, Sweep
from prefsweep.sweeps.errors import UsageError
from prefsweep.sweeps.records import Status

from .small import small_sweep, table, weights

LONGER = "grid=[{loss_type: [sigmoid, hinge], beta: [0.1, 0.5], learning_rate: 1e-3}]"
MORE_PROMPTS = "prompts.num_eval=5"


def run(sweep: Sweep) -> list[Status]:
    results = run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources))
    return [result.status for result in results]


@pytest.fixture(scope="module")
def undisturbed(finished_sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    storage = tmp_path_factory.mktemp("undisturbed") / "store"
    return small_sweep(shutil.copytree(finished_sweep.storage, storage))


@pytest.fixture(scope="module")
def longer(undisturbed: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """What the longer sweep gives when nothing is damaged."""
    folder = tmp_path_factory.mktemp("longer") / "store"
    shutil.copytree(undisturbed.storage, folder)
    sweep = small_sweep(folder, LONGER, MORE_PROMPTS)
    assert run(sweep) == [Status.SUCCEEDED] * 5
    return sweep


def flip(file: Path) -> None:
    """Change one byte in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("stage", "harm"),
    [
        ("policy", flip),
        ("reward", cut),
        ("reference", flip),
        ("weights", flip),
        ("weights", Path.unlink),
    ],
)
def test_a_damaged_artefact_that_is_used_is_made_again_and_gives_the_same_results(
    stage: str,
    harm: Callable[[Path], None],
    undisturbed: Sweep,
    longer: Sweep,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """More trials and more held-out prompts: all of these are read again."""
    shutil.copytree(undisturbed.storage, tmp_path / "store")
    sweep = small_sweep(tmp_path / "store", LONGER, MORE_PROMPTS)
    path = sweep.store.trial(sweep.trials[0].trial_id, "weights")
    folder = Path(sweep.store.display(path if stage == "weights" else sweep.path(stage)))
    harm(min(folder.rglob("*.[ps]a*")))  # parquet or safetensors
    assert run(sweep) == [Status.SUCCEEDED] * 5
    assert weights(sweep) == weights(longer)
    assert table(sweep) == table(longer)
    if stage != "weights":
        assert "damaged" in caplog.text
    assert sweep.store.names("tmp") == []


@pytest.mark.parametrize("stage", ["eval_prompts", UNTRAINED])
def test_damage_that_only_workers_see_is_mended_in_the_same_run(
    stage: str,
    undisturbed: Sweep,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As on an object store, where the driver does not read all of it before the trials."""
    monkeypatch.setattr(Run, "_verify_inputs", lambda run: None)
    shutil.copytree(undisturbed.storage, tmp_path / "store")
    sweep = small_sweep(tmp_path / "store")
    for trial in sweep.trials:
        sweep.store.delete(sweep.evaluation_path(trial.trial_id))
    path = sweep.evaluation_path(stage) if stage == UNTRAINED else sweep.path(stage)
    flip(min(Path(sweep.store.display(path)).glob("*.parquet")))
    assert run(sweep) == [Status.SUCCEEDED] * 3
    assert f"{stage}: damaged while in use; rebuilding" in caplog.text
    assert table(sweep) == table(undisturbed)


def test_damaged_evaluations_are_made_again_when_the_report_reads_them(
    undisturbed: Sweep, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed.storage, tmp_path / "store")
    sweep = small_sweep(tmp_path / "store")
    flip(Path(sweep.store.display(sweep.evaluation_path(UNTRAINED))) / "samples.parquet")
    first, second = (
        Path(sweep.store.display(sweep.evaluation_path(trial.trial_id))) for trial in sweep.trials
    )
    flip(first / "samples.parquet")
    cut(second / "metrics.json")
    sweep.store.delete(sweep.store.sweep("small", "report"))
    assert run(sweep) == [Status.SUCCEEDED] * 3
    assert table(sweep) == table(undisturbed)


def test_a_damaged_shard_that_the_next_stage_meets_is_made_again_alone(
    undisturbed: Sweep, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = small_sweep(tmp_path)
    run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources), until="completions")
    folder = Path(sweep.store.display(sweep.path("completions")))
    shards = sorted(folder.glob("*.parquet"))
    flip(shards[1])
    before = {shard: shard.stat().st_mtime_ns for shard in shards}
    assert run(sweep) == [Status.SUCCEEDED] * 3
    assert "shard-00001.parquet is damaged" in caplog.text
    after = {shard: shard.stat().st_mtime_ns for shard in shards}
    assert {shard for shard in shards if before[shard] != after[shard]} == {shards[1]}
    assert table(sweep) == table(undisturbed)


@pytest.mark.parametrize(
    "name", ["spec.json", "state.json", "plan.json", "lease.json", "stop.json", "report.json"]
)
@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b'{"status": 3}', b"\xff\x00"])
def test_files_of_the_sweep_that_cannot_be_read_hold_nothing_up(
    name: str, data: bytes, undisturbed: Sweep
) -> None:
    sweep = undisturbed
    sweep.store.write(sweep.store.sweep("small", name), data)
    assert run(sweep) == [Status.SUCCEEDED] * 3


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[1]", b'{"status": 3}', b'{"status": "failed", "failure": {"kind": 1}}', b"\xff"],
)
def test_a_trials_status_that_cannot_be_read_is_no_status(data: bytes, undisturbed: Sweep) -> None:
    sweep = undisturbed
    sweep.store.write(sweep.store.trial(sweep.trials[0].trial_id, "status.json"), data)
    assert run(sweep) == [Status.SUCCEEDED] * 3


def test_a_damaged_spec_is_told_with_what_to_do(undisturbed: Sweep) -> None:
    from prefsweep.orchestrator.state.sweep import open_sweep

    for data in (b"{", b"[1]", b"{}", b'{"spec": 1, "inputs": {}}'):
        undisturbed.store.write(undisturbed.store.sweep("small", "spec.json"), data)
        with pytest.raises(UsageError, match=r"spec.json"):
            open_sweep("small", undisturbed.storage)
    assert run(undisturbed) == [Status.SUCCEEDED] * 3
    assert open_sweep("small", undisturbed.storage).trials == undisturbed.trials
