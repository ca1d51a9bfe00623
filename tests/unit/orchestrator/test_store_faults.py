"""Storage that fails, fills up, is damaged, or was left half-way by somebody who was killed."""

import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs

from prefsweep.orchestrator.execution import hosts
from prefsweep.orchestrator.execution.hosts import _HostActor
from prefsweep.orchestrator.store import retry
from prefsweep.orchestrator.store.downloads import download_cache
from prefsweep.orchestrator.store.scratch import is_in_use, scratch_home, scratch_name
from prefsweep.orchestrator.store.store import ASIDE, MANIFEST, Store, new_manifest
from prefsweep.orchestrator.tasks.checkpoints import newest_checkpoint
from prefsweep.orchestrator.tasks.training import verified_weights
from prefsweep.orchestrator.tasks.trial_output import TrialOutput
from prefsweep.sweeps.errors import DamagedError, StoreError, UsageError
from tests.integration.small import small_sweep

from .test_store import FINGERPRINT, publish

ARTEFACT = "artifacts/x"


class Failing:
    """A file system whose next `num` calls fail."""

    def __init__(self, system: fs.FileSystem, num: int, number: int = errno.EIO) -> None:
        self._system, self._num, self._errno = system, num, number

    def __getattr__(self, name: str) -> Any:
        if self._num > 0:
            self._num -= 1
            raise OSError(self._errno, os.strerror(self._errno))
        return getattr(self._system, name)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "RETRY_DELAYS_S", (0.0, 0.0, 0.0))


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store on something that has neither renames nor this machine's disk."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = Store(f"/{uuid4().hex}")
    store.fs, store.is_local = fs.PyFileSystem(fs.FSSpecHandler(MemoryFileSystem())), False
    return store


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest) -> Store:
    return request.getfixturevalue(request.param)


def change(store: Store, path: str) -> None:
    """Change a file's content, and not its size."""
    data = store.read(path)
    assert data
    with store.fs.open_output_stream(store._full(path)) as stream:
        stream.write(bytes([data[0] ^ 1]) + data[1:])


def test_what_fails_for_a_while_is_done_in_the_end(store: Store) -> None:
    system = store.fs
    for act in (
        lambda: store.write("a/b", b"1"),
        lambda: store.read("a/b"),
        lambda: store.names("a"),
        lambda: store.append("a/b", b"2"),
        lambda: store.manifest(ARTEFACT),
        lambda: store.delete("a/c"),
    ):
        store.fs = Failing(system, 3)  # pyright: ignore[reportAttributeAccessIssue]
        act()
    assert store.read("a/b") == b"12"


def test_what_fails_for_good_is_told_with_path_and_remedy(store: Store) -> None:
    store.fs = Failing(store.fs, 4)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(StoreError, match=r"a/b cannot be read: .*tried 4 times; check the"):
        store.read("a/b")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, "this user has no permission"),
        (errno.EROFS, "this user has no permission"),
    ],
)
def test_what_trying_again_cannot_mend_is_told_at_once(
    store: Store, number: int, remedy: str
) -> None:
    failing = Failing(store.fs, 1, number)
    store.fs = failing  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(StoreError, match=f"cannot be read: .*{remedy}"):
        store.read("a/b")


@contextmanager
def small_files(max_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond that many bytes: what a full disk is like.

    Only inside a test, never around one: pytest's own output may be a file, and a longer one.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_neither_half_a_file_nor_garbage(local: Store) -> None:
    local.write("a/b", b"old")
    big = b"x" * 40_000
    with small_files(20_000):
        with pytest.raises(StoreError, match=r"a/b cannot be written: .*raise the limit"):
            local.write("a/b", big)
        too_large = pytest.raises(StoreError, match=r"tmp cannot be written: .*File too large")
        with too_large, local.staging() as folder:
            (folder / "weights").write_bytes(big)
        for number in range(10):
            local.append("log", b"%d" % number + b"x" * 1900 + b"\n")
        with pytest.raises(StoreError, match="log cannot be written"):
            local.append("log", big)
    assert local.read("a/b") == b"old"
    assert local.names("tmp") == []
    assert local.names("a") == ["b"]
    assert (local.read("log") or b"").count(b"\n") == 10
    assert (local.read("log") or b"").endswith(b"x\n")


def test_a_full_disk_is_known_from_what_libraries_make_of_it(local: Store) -> None:
    full = pytest.raises(StoreError, match=r"I/O error: No space left.*the disk is full")
    with full, local.staging():
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_changed_content_is_never_used_but_set_aside_and_rebuilt(store: Store) -> None:
    publish(store, ARTEFACT, a="content", b="more")
    store.fetch(ARTEFACT)
    change(store, f"{ARTEFACT}/b")
    other = Store(store.uri)  # another process: this one has looked already
    other.fs, other.is_local = store.fs, store.is_local
    shutil.rmtree(download_cache(), ignore_errors=True)
    with pytest.raises(DamagedError, match=r"x/b is damaged: .*run the same command again"):
        other.fetch(ARTEFACT)
    assert other.manifest(ARTEFACT) is None
    assert len(store.names(ASIDE)) == store.is_local
    publish(other, ARTEFACT, a="content", b="more")
    assert (other.fetch(ARTEFACT) / "b").read_text() == "more"


def test_a_damaged_copy_of_what_is_whole_in_the_store_is_fetched_again(remote: Store) -> None:
    publish(remote, ARTEFACT, a="content")
    (remote.fetch(ARTEFACT) / "a").write_text("CONTENT")
    remote._verified.clear()
    assert (remote.fetch(ARTEFACT) / "a").read_text() == "content"
    assert remote.manifest(ARTEFACT) is not None


def test_copies_of_a_trial_are_dropped_and_nothing_else(remote: Store) -> None:
    weights, other = remote.trial("aaa", "weights"), remote.trial("bbb", "weights")
    for path in (weights, other):
        publish(remote, path, a="content")
    dropped, kept = remote.fetch(weights), remote.fetch(other)
    remote.drop_copies(remote.trial("aaa"))
    assert not dropped.exists() and kept.exists()
    assert (remote.fetch(weights) / "a").read_text() == "content"


def test_what_cannot_be_read_for_now_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk for downloads, say: weights and checkpoints stay as they are."""
    sweep = small_sweep(tmp_path)
    trial = sweep.trials[0]
    weights = sweep.store.trial(trial.trial_id, "weights")
    checkpoint = sweep.store.trial(trial.trial_id, "checkpoints", "step-000004")
    for path in (weights, checkpoint):
        publish(sweep.store, path, a="content")

    def fail(store: Store, path: str) -> Path:
        raise StoreError(f"{path} cannot be read: the disk is full")

    monkeypatch.setattr(Store, "fetch", fail)
    with pytest.raises(StoreError, match="disk is full"):
        verified_weights(sweep, trial)
    with pytest.raises(StoreError, match="disk is full"):
        newest_checkpoint(sweep, trial)
    monkeypatch.undo()
    assert sweep.store.manifest(weights) and sweep.store.manifest(checkpoint)


def test_a_storage_that_is_a_file_is_told(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "file"))
    (tmp_path / "file").touch()  # after it was opened
    with (
        pytest.raises(StoreError, match=r"lock cannot be written"),
        store.locked("sweeps/x/lock"),
    ):
        raise AssertionError("it was locked")
    with pytest.raises(UsageError, match=r"file is a file; use a folder"):
        Store(str(tmp_path / "file"))


def test_of_shards_only_those_that_are_damaged_are_set_aside(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "shard"
    shards = [store.shard("scores", FINGERPRINT, index) for index in range(4)]
    path = store.artifact("scores", FINGERPRINT)
    for index, shard in enumerate(shards):
        file.write_text(f"rows {index}")
        store.publish_shard(shard, file, new_manifest(FINGERPRINT, 1, 0.0))
    store.publish_shards(path, shards, new_manifest(FINGERPRINT, 4, 0.0))
    change(store, shards[0])
    with pytest.raises(DamagedError, match=r"shard-00000.parquet is damaged"):
        store.fetch_shard(shards[0], tmp_path)
    assert store.manifest(path) is None
    missing = [store.shard_manifest(shard) is None for shard in shards]
    assert missing == [True, False, False, False]
    file.write_text("rows 0")
    store.publish_shard(shards[0], file, new_manifest(FINGERPRINT, 1, 0.0))
    store.publish_shards(path, shards, new_manifest(FINGERPRINT, 4, 0.0))
    change(store, shards[1])
    change(store, shards[2])
    with pytest.raises(DamagedError, match=r"shard-00001.parquet is damaged"):
        store.fetch(path)
    missing = [store.shard_manifest(shard) is None for shard in shards]
    assert missing == [False, True, True, False]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"files": {}}', b"\xff\xfe\x00"])
def test_a_manifest_that_cannot_be_read_is_no_manifest_and_is_told_once(
    store: Store, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    publish(store, ARTEFACT, a="content")
    store.write(f"{ARTEFACT}/{MANIFEST}", content)
    store.write("artifacts/y/shard.json", content)
    assert store.manifest(ARTEFACT) is None
    assert store.manifest(ARTEFACT) is None
    assert store.shard_manifest("artifacts/y/shard") is None
    assert caplog.text.count("x is damaged (its manifest cannot be read)") == 1


@pytest.mark.parametrize("name", ["../../outside", "a/../../b", "", "/etc/passwd"])
def test_a_manifest_names_no_file_outside_its_artefact(store: Store, name: str) -> None:
    publish(store, ARTEFACT, a="content")
    document = store.read_json(f"{ARTEFACT}/{MANIFEST}")
    document["files"] = {name: document["files"]["a"]}
    store.write_json(f"{ARTEFACT}/{MANIFEST}", document)
    assert store.manifest(ARTEFACT) is None


def test_publishing_over_what_a_killed_process_left_half_deleted(local: Store) -> None:
    publish(local, ARTEFACT, a="content", sub__b="more")
    (Path(local.display(ARTEFACT)) / "a").unlink()
    publish(local, ARTEFACT, a="content", sub__b="more")
    assert (local.fetch(ARTEFACT) / "a").read_text() == "content"
    assert local.names("tmp") == []


def test_publishers_at_once_leave_one_whole_artefact(local: Store) -> None:
    (Path(local.display(ARTEFACT))).mkdir(parents=True)
    (Path(local.display(ARTEFACT)) / "half").write_text("left by somebody killed")
    start = threading.Barrier(8)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            start.wait()
            publish(Store(local.uri), ARTEFACT, a="content", sub__b="more")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert sorted(os.listdir(local.fetch(ARTEFACT))) == ["a", MANIFEST, "sub"]
    assert local.names("tmp") == []


def dead_name() -> str:
    """A scratch name of a process that has ended."""
    module = "prefsweep.orchestrator.store.scratch"
    code = f"from {module} import scratch_name; print(scratch_name(), flush=True)"
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return dead.stdout.strip()


@pytest.mark.parametrize("where", ["in the store", "on this machine"])
def test_only_what_the_surely_dead_left_is_deleted(
    where: str, local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    dead, mine, elsewhere = dead_name(), scratch_name(), "abcdef01-1-5-00000000"
    reused = scratch_name().split("-")
    reused[2] = "1"  # the number of this process, which another one had before it
    folder = Path(local.display("tmp")) if where == "in the store" else scratch_home()
    for name in (dead, mine, elsewhere, "tmpq3x", "-".join(reused)):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").touch()
    (folder / dead_name()).touch()
    assert local.delete_abandoned() == 3
    assert sorted(os.listdir(folder)) == sorted([mine, elsewhere, "tmpq3x"])
    assert local.scratch_owners() == {os.getpid()}


def test_a_worker_deletes_what_one_that_was_killed_there_has_left(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver may be on another machine."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(hosts, "hide_gpus_of_others", lambda: None)
    monkeypatch.setattr(hosts, "set_up_worker", lambda threads: None)
    places = [Path(local.display("tmp")), scratch_home()]
    sweep = SimpleNamespace(store=local)
    works: list[Any] = [
        lambda host: host.run_task(SimpleNamespace(sweep=sweep, run=lambda: None)),
        lambda host: host._load(SimpleNamespace(sweep=sweep, name="scores", load=lambda: None)),
    ]
    for work in works:
        for place in places:
            (place / dead_name()).mkdir(parents=True)
        work(_HostActor(1, None))
        assert [list(place.iterdir()) for place in places] == [[], []]


def test_what_a_trials_log_lies_in_meanwhile_says_whose_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    sweep = small_sweep(tmp_path / "store")
    sweep.store.fs = fs.PyFileSystem(fs.FSSpecHandler(MemoryFileSystem()))
    sweep.store.is_local = False
    with TrialOutput(sweep, sweep.trials[0], prints=False) as output:
        output.note("a line")
        (folder,) = scratch_home().iterdir()
        assert is_in_use(folder.name)
    assert list((tmp_path / "temporary").rglob("*")) == [scratch_home()]
