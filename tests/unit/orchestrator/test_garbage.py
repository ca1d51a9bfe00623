"""`prefsweep gc`: what no sweep refers to goes when asked for, and nothing else."""

import os
import time
from pathlib import Path

import pytest

from prefsweep.orchestrator.machines.inputs import store_inputs
from prefsweep.orchestrator.pipeline import spec_document
from prefsweep.orchestrator.recovery.lease import Lease
from prefsweep.orchestrator.storage.garbage import delete_garbage, find_garbage
from prefsweep.orchestrator.storage.scratch import scratch_name
from prefsweep.orchestrator.store import Store
from prefsweep.orchestrator.sweep import UNTRAINED, Sweep, resolve
from prefsweep.sweeps.errors import StoreError
from prefsweep.sweeps.load import load_spec
from tests.integration.small import small_sweep
from tests.unit.orchestrator.test_cli import prefsweep

STAGES = ("policy", "reward", "prompts", "eval_prompts", "completions", "scores", "pairs")


def make(sweep: Sweep) -> set[str]:
    """Files where the sweep's artefacts would be, and its spec; returns their paths."""
    store = sweep.store
    store.write_json(store.sweep(sweep.spec.name, "spec.json"), spec_document(sweep))
    paths = [sweep.path(stage) for stage in (*STAGES, "reference")]
    paths.append(sweep.evaluation_path(UNTRAINED))
    for trial in sweep.trials:
        paths.append(store.trial(trial.trial_id, "weights"))
        paths.append(sweep.evaluation_path(trial.trial_id))
    for path in paths:
        store.write(f"{path}/file", b"x" * 1000)
    return {f"{path}/file" for path in paths}


def files(store: Store) -> set[str]:
    root = Path(store.display("."))
    return {
        str(file.relative_to(root))
        for part in ("artifacts", "trials", "aside", "tmp")
        for file in (root / part).rglob("*")
        if file.is_file()
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_what_a_sweep_refers_to_stays_and_all_else_goes(store: Store, tmp_path: Path) -> None:
    small = make(small_sweep(tmp_path, "name=other", "prompts.num_eval=5", "seeds=[3]"))
    before = make(small_sweep(tmp_path, "seeds=[0, 1]", "pairs.min_margin=0.5"))
    now = small_sweep(tmp_path, "seeds=[0]", "prompts.num_eval=6")
    used = make(now) | small
    store.write("aside/artifacts~x.1234/file", b"x")
    garbage = find_garbage(store)
    assert {item.what for item in garbage} == {"artefact", "trial", "damaged"}
    assert files(store) >= before  # looking deletes nothing
    trials = [item for item in garbage if item.what == "trial"]
    assert len(trials) == 4  # another min_margin: none of them is of the present sweep
    assert {item.num_bytes for item in trials} == {2000}
    delete_garbage(store, garbage)
    assert files(store) == used
    assert find_garbage(store) == []


def test_an_evaluation_that_nobody_asks_for_any_more_goes_and_its_trial_stays(
    store: Store, tmp_path: Path
) -> None:
    make(small_sweep(tmp_path))
    used = make(small_sweep(tmp_path, "evaluation.num_samples=2"))
    garbage = find_garbage(store)
    assert [item.what for item in garbage] == ["artefact", "evaluation", "evaluation"]
    delete_garbage(store, garbage)
    assert files(store) == used


def test_what_workers_read_from_the_store_for_a_sweep_stays(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f'{{"text": "text {n}"}}\n' for n in range(9)))
    prompts = f"prompts={{type: file, path: '{file}', num_eval: 2}}"
    sweep = resolve(load_spec("quickstart", [prompts]), store.uri)
    make(sweep)
    store_inputs(store, sweep.spec, sweep.inputs)
    store.write("artifacts/probe-0123/H100.json", b"{}")
    store.write("artifacts/preflight-0123/node", b"x")
    lease = Lease(store, sweep.spec.name)
    lease.acquire()
    assert find_garbage(store) == []
    lease.release()
    assert [item.path for item in find_garbage(store)] == ["artifacts/preflight-0123"]
    file.unlink()  # as on another machine
    assert [item.path for item in find_garbage(store)] == ["artifacts/preflight-0123"]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"spec": {}, "inputs": {}}'])
def test_with_a_sweep_that_cannot_be_read_nothing_is_deleted(
    store: Store, tmp_path: Path, data: bytes
) -> None:
    make(small_sweep(tmp_path))
    garbage = make(small_sweep(tmp_path, "pairs.min_margin=0.5"))
    store.write(store.sweep("unreadable", "spec.json"), data)
    with pytest.raises(StoreError, match=r"'unreadable' cannot be read.*nothing was deleted"):
        find_garbage(store)
    assert files(store) >= garbage


def test_what_a_sweep_takes_up_between_looking_and_deleting_stays(
    store: Store, tmp_path: Path
) -> None:
    before = make(small_sweep(tmp_path))
    make(small_sweep(tmp_path, "pairs.min_margin=0.5"))
    garbage = find_garbage(store)
    used = make(small_sweep(tmp_path))
    assert used == before
    delete_garbage(store, garbage)
    assert files(store) >= used


def test_what_is_being_made_stays(store: Store, tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path)
    make(sweep)
    elsewhere = "abcdef01-7-5-00000000"
    for name in (scratch_name(), elsewhere):
        store.write(f"tmp/{name}/file", b"x")
    lease = Lease(store, "small")
    lease.acquire()
    assert find_garbage(store) == []  # the other machine may be one of the live driver's workers
    lease.release()
    assert [item.path for item in find_garbage(store)] == [f"tmp/{elsewhere}"]


@pytest.mark.parametrize("ahead_s", [-86_400.0, 0.0, 86_400.0])
@pytest.mark.parametrize("silent_s", [5.0, 3600.0])
def test_a_driver_elsewhere_lives_by_the_clock_of_the_storage(
    store: Store, tmp_path: Path, silent_s: float, ahead_s: float
) -> None:
    """Whatever its own clock says, which its heartbeats are told by."""
    make(small_sweep(tmp_path))
    lease, half_made = Lease(store, "small"), "tmp/abcdef01-7-5-00000000"
    lease.acquire()
    path = store.sweep("small", "lease.json")
    its_clock = {"machine": "abcdef01", "heartbeat": time.time() + ahead_s}
    store.write_json(path, store.read_json(path) | its_clock)
    file, now_s = Path(store.display(path)), time.time()
    os.utime(file, (now_s - silent_s, now_s - silent_s))
    store.write(f"{half_made}/file", b"x")
    found = [] if silent_s < 60 else [half_made]
    assert [item.path for item in find_garbage(store)] == found
    assert store.names("tmp") == [half_made.removeprefix("tmp/")], "what tells the time is gone"


def test_the_command_shows_and_deletes_only_when_told(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    used = make(small_sweep(tmp_path))
    store.write("artifacts/pairs-0123/pairs.parquet", b"x" * 3_000_000)
    storage = ["--storage", str(tmp_path)]
    assert prefsweep(monkeypatch, "gc", *storage) == 0
    out = capsys.readouterr().out
    assert "3.0 MB  artefact" in out and "--yes deletes them" in out
    assert len(files(store)) == len(used) + 1
    assert prefsweep(monkeypatch, "gc", "--yes", *storage) == 0
    assert "1 things, 3.0 MB: deleted" in capsys.readouterr().out
    assert files(store) == used
    assert prefsweep(monkeypatch, "gc", *storage) == 0
    assert "nothing to delete" in capsys.readouterr().out
