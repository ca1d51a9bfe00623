"""`prefsweep gc`: what no sweep refers to goes when asked for, and nothing else."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from prefsweep.orchestrator.driver.run import Run
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.state.garbage import delete_garbage, find_garbage
from prefsweep.orchestrator.state.inputs import store_inputs
from prefsweep.orchestrator.state.lease import Lease
from prefsweep.orchestrator.state.marker import claim
from prefsweep.orchestrator.state.sweep import UNTRAINED, Sweep, resolve, spec_document
from prefsweep.orchestrator.store.paths import (
    DELETING,
    is_artifact_name,
    is_scratch_name,
    is_trial_id,
)
from prefsweep.orchestrator.store.scratch import scratch_name
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.errors import StoreError, UsageError
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
    store.write("aside/artifacts~x.0123abcd/file", b"x")
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
    store.write("artifacts/preflight-0123456789abcdef/node", b"x")
    lease = Lease(store, sweep.spec.name)
    lease.acquire()
    assert find_garbage(store) == []
    lease.release()
    assert [item.path for item in find_garbage(store)] == ["artifacts/preflight-0123456789abcdef"]
    file.unlink()  # as on another machine
    assert [item.path for item in find_garbage(store)] == ["artifacts/preflight-0123456789abcdef"]


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
    store.write("artifacts/pairs-0123456789abcdef/pairs.parquet", b"x" * 3_000_000)
    storage = ["--storage", str(tmp_path)]
    assert prefsweep(monkeypatch, "gc", *storage) == 0
    out = capsys.readouterr().out
    assert "3.0 MB  artefact" in out and "--yes deletes them" in out
    assert len(files(store)) == len(used) + 1
    assert prefsweep(monkeypatch, "gc", "--json", *storage) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["num_bytes"] == 3_000_000 and not document["delete"]
    assert [item["what"] for item in document["items"]] == ["artefact"]
    assert prefsweep(monkeypatch, "gc", "--yes", *storage) == 0
    assert "1 items, 3.0 MB: deleted" in capsys.readouterr().out
    assert files(store) == used
    assert prefsweep(monkeypatch, "gc", *storage) == 0
    assert "nothing to delete" in capsys.readouterr().out


# --- folders that are no store, links, and runs that start meanwhile ------------------------------

THINGS_OF_A_PROJECT = (
    "artifacts/paper-final/paper.tex",
    "artifacts/pairs-final/table.csv",
    "trials/clinical-2024/consent.pdf",
    "tmp/my-notes/notes.txt",
    "aside/later/todo.txt",
)


def write_project(root: Path) -> dict[str, bytes]:
    for name in THINGS_OF_A_PROJECT:
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(name.encode())
    return {name: (root / name).read_bytes() for name in THINGS_OF_A_PROJECT}


def read_project(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in THINGS_OF_A_PROJECT}


@pytest.mark.parametrize("has_notes_on_sweeps", [False, True])
def test_gc_refuses_a_folder_that_is_no_store(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    has_notes_on_sweeps: bool,
) -> None:
    project = write_project(tmp_path)
    if has_notes_on_sweeps:
        (tmp_path / "sweeps/spring").mkdir(parents=True)
    assert prefsweep(monkeypatch, "gc", "--yes", "--storage", str(tmp_path)) == 2
    assert "is not a prefsweep store" in capsys.readouterr().err
    assert read_project(tmp_path) == project


def test_in_a_store_only_names_of_its_own_form_are_deleted(store: Store, tmp_path: Path) -> None:
    project = write_project(tmp_path)
    used = make(small_sweep(tmp_path))
    store.mark()
    store.write("trials/0123456789ab/evaluations/of-mine/file", b"x")
    store.write("artifacts/pairs-0123456789abcdef/file", b"x")
    garbage = find_garbage(store)
    assert {item.path for item in garbage} == {
        "artifacts/pairs-0123456789abcdef",
        "trials/0123456789ab",
    }
    assert delete_garbage(store, garbage) == []
    assert files(store) == used | set(project)


def test_a_store_from_before_there_were_marks_is_known_by_its_sweeps(
    store: Store, tmp_path: Path
) -> None:
    make(small_sweep(tmp_path))
    assert not store.is_marked
    store.write("artifacts/pairs-0123456789abcdef/file", b"x")
    assert [item.what for item in find_garbage(store)] == ["artefact"]


def test_a_marked_store_whose_sweeps_were_all_deleted_can_be_emptied(store: Store) -> None:
    claim(store)
    store.write("artifacts/pairs-0123456789abcdef/file", b"x")
    assert [item.what for item in find_garbage(store)] == ["artefact"]


def test_a_run_says_so_where_other_things_are_in_the_folder_and_once(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_project(tmp_path)
    claim(store)
    assert "is not empty and is not a prefsweep store" in caplog.text
    assert "artifacts, aside, tmp, trials" in caplog.text
    caplog.clear()
    claim(store)
    assert caplog.text == "" and store.is_marked


@pytest.mark.parametrize("leftover", [None, ".DS_Store", "lost+found/", "tmp/", "old store"])
def test_a_run_marks_an_empty_folder_or_an_old_store_without_a_word(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, leftover: str | None
) -> None:
    if leftover == "old store":
        make(small_sweep(tmp_path))
    elif leftover is not None and leftover.endswith("/"):
        (tmp_path / leftover).mkdir()
    elif leftover is not None:
        (tmp_path / leftover).touch()
    claim(store)
    assert caplog.text == "" and store.is_marked


def test_what_a_run_that_starts_during_the_deletions_refers_to_stays(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletions take minutes; the run starts after the first one."""
    before = small_sweep(tmp_path)
    used = make(before)
    make(small_sweep(tmp_path, "pairs.min_margin=0.5"))
    garbage, deleted = find_garbage(store), list[str]()
    delete = Store.delete

    def delete_and_start(self: Store, path: str) -> None:
        delete(self, path)
        deleted.append(path)
        if len(deleted) == 1:
            spec = self.sweep(before.spec.name, "spec.json")
            self.write_json(spec, spec_document(before))

    monkeypatch.setattr(Store, "delete", delete_and_start)
    delete_garbage(store, garbage)
    assert len(deleted) == 1 < len(garbage)
    assert files(store) >= used - {f"{deleted[0]}/file"}


def test_a_run_waits_with_its_spec_until_a_deletion_is_over(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it looks for what the spec refers to when it is gone, and makes it anew."""
    sweep = small_sweep(tmp_path)
    spec = tmp_path / "sweeps/small/spec.json"
    run = threading.Thread(
        target=lambda: run_sweep(sweep, lambda: pytest.fail("no cluster"), until="policy")
    )
    monkeypatch.setattr(Run, "run_until_complete", lambda self, steps: None)  # nothing to compute
    with store.locked(DELETING):
        run.start()
        time.sleep(0.5)
        assert not spec.exists()
    run.join(60)
    assert spec.exists()


@pytest.mark.parametrize("folder", ["artifacts", "trials", "sweeps", "tmp", "aside"])
def test_a_link_as_a_top_level_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "store"
    (elsewhere / "0123456789ab").mkdir(parents=True)
    root.mkdir()
    Store(str(root)).mark()
    shutil.rmtree(root / folder, ignore_errors=True)
    (root / folder).symlink_to(elsewhere)
    assert prefsweep(monkeypatch, "gc", "--yes", "--storage", str(root)) == 2
    with pytest.raises(UsageError, match=f"{folder} is a link"):
        Store(str(root))
    assert (elsewhere / "0123456789ab").exists()


def test_nothing_is_deleted_through_a_link(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    evaluation = outside / "evaluations/0123456789abcdef/file"
    evaluation.parent.mkdir(parents=True)
    evaluation.write_text("mine")
    sweep = small_sweep(tmp_path)
    make(sweep)
    (tmp_path / "trials/0123456789ab").symlink_to(outside)  # the link goes, what is behind it stays
    trial = tmp_path / "trials" / sweep.trials[0].trial_id
    shutil.rmtree(trial / "evaluations")
    (trial / "evaluations").symlink_to(outside / "evaluations")
    store.write("artifacts/pairs-0123456789abcdef/file", b"x")
    assert prefsweep(monkeypatch, "gc", "--yes", "--storage", str(tmp_path)) == 1
    err = " ".join(capsys.readouterr().err.split())
    assert "1 of 3 items" in err and f"{trial / 'evaluations'} is a link" in err
    assert evaluation.read_text() == "mine"
    assert not (tmp_path / "trials/0123456789ab").is_symlink()
    assert not (tmp_path / "artifacts/pairs-0123456789abcdef").exists()


@pytest.mark.parametrize("name", [".DS_Store", ".nfs000000000001", "lost+found", "@eaDir"])
def test_what_systems_put_into_a_store_is_left_alone(
    store: Store, tmp_path: Path, name: str
) -> None:
    used = make(small_sweep(tmp_path))
    for folder in ("sweeps", "artifacts", "trials", "tmp", "aside"):
        (tmp_path / folder).mkdir(exist_ok=True)
        if name.startswith("."):
            (tmp_path / folder / name).touch()
        else:
            (tmp_path / folder / name).mkdir()
    assert find_garbage(store) == []
    assert store.sweeps() == ["small"]
    assert {file for file in files(store) if not file.endswith(name)} == used


def test_every_stage_has_names_that_gc_knows(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path)
    stages = [sweep.path(stage) for stage in sweep.fingerprints.parts]
    assert all(is_artifact_name(path.removeprefix("artifacts/")) for path in stages)
    assert all(is_trial_id(trial.trial_id) for trial in sweep.trials)
    assert is_scratch_name(scratch_name())
