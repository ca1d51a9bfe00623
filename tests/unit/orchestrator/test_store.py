import json
import pickle
from pathlib import Path

import pytest

from prefsweep.orchestrator.store.store import MANIFEST, Store, new_manifest
from prefsweep.sweeps.errors import DamagedError, StoreError, UsageError

FINGERPRINT = "ab" * 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def publish(store: Store, path: str, **files: str) -> None:
    with store.staging() as folder:
        output = folder / "out"
        for name, text in files.items():
            file = output / name.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        own = path.split("/")[1] if path.startswith("trials/") else FINGERPRINT
        store.publish(path, output, new_manifest(own, 3, 1.5, {"tied": 2}))


def test_an_artefact_is_whole_or_not_there(store: Store) -> None:
    path = store.artifact("pairs", FINGERPRINT)
    assert path == "artifacts/pairs-abababababababab"
    assert store.manifest(path) is None
    publish(store, path, a="one", sub__b="two")
    manifest = store.manifest(path)
    assert manifest is not None
    assert (manifest.fingerprint, manifest.rows, manifest.notes) == (FINGERPRINT, 3, {"tied": 2})
    assert manifest.files["sub/b"].size == 3
    assert (store.fetch(path) / "sub" / "b").read_text() == "two"


@pytest.mark.parametrize("damage", ["missing", "truncated", "no manifest", "half a manifest"])
def test_a_damaged_artefact_is_not_done_and_is_made_anew(store: Store, damage: str) -> None:
    path = "artifacts/x"
    publish(store, path, a="content")
    folder = Path(store.display(path))
    match damage:
        case "missing":
            (folder / "a").unlink()
        case "truncated":
            (folder / "a").write_text("cont")
        case "no manifest":
            (folder / MANIFEST).unlink()
        case _:
            (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:40])
    assert store.manifest(path) is None
    publish(store, path, a="content")
    assert (store.fetch(path) / "a").read_text() == "content"


@pytest.fixture(params=["disk", "objects"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    at = tmp_path / "store"
    return Store(str(at) if request.param == "disk" else f"memory://{tmp_path.name}/store")


def test_a_second_publisher_leaves_the_first_artefact_and_never_takes_it_away(
    any_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(any_store, "artifacts/x", a="first")
    with monkeypatch.context() as patch:
        for change in ("delete", "write", "upload"):
            patch.setattr(Store, change, None)
        publish(any_store, "artifacts/x", a="again")
    assert (any_store.fetch("artifacts/x") / "a").read_text() == "first"


def test_a_second_publisher_leaves_the_first_shard_and_never_takes_it_away(
    any_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, file = any_store.shard("scores", FINGERPRINT, 0), tmp_path / "file"
    file.write_text("first")
    any_store.publish_shard(shard, file, new_manifest(FINGERPRINT, 1, 0.0))
    file.write_text("again")
    with monkeypatch.context() as patch:
        for change in ("delete", "write", "upload"):
            patch.setattr(Store, change, None)
        any_store.publish_shard(shard, file, new_manifest(FINGERPRINT, 1, 0.0))
    assert any_store.fetch_shard(shard, tmp_path).read_text() == "first"


def test_shards_that_are_gone_are_made_again_unless_their_stage_is_done(
    any_store: Store, tmp_path: Path
) -> None:
    path, shard = any_store.artifact("scores", FINGERPRINT), any_store.shard("scores", "a" * 64, 0)
    with pytest.raises(DamagedError, match="it will be rebuilt"):
        any_store.publish_shards(path, [shard], new_manifest(FINGERPRINT, 1, 0.0))
    publish(any_store, path, a="as another run has made it")
    any_store.publish_shards(path, [shard], new_manifest(FINGERPRINT, 1, 0.0))
    assert (any_store.fetch(path) / "a").is_file()


def test_a_file_that_is_taken_away_while_it_is_read_counts_as_damaged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, "artifacts/x", a="content")

    def gone(path: Path) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr("prefsweep.orchestrator.store.manifest.file_entry", gone)
    with pytest.raises(DamagedError, match="x/a is damaged"):
        store.fetch("artifacts/x")


def test_shards_are_done_one_by_one_and_finished_together(store: Store, tmp_path: Path) -> None:
    shards = [store.shard("scores", FINGERPRINT, index) for index in range(2)]
    path = store.artifact("scores", FINGERPRINT)
    file = tmp_path / "shard"
    for index, shard in enumerate(shards):
        with pytest.raises(StoreError, match="missing or damaged"):
            store.publish_shards(path, shards, new_manifest(FINGERPRINT, 2, 0.0))
        file.write_text(f"rows {index}")
        store.publish_shard(shard, file, new_manifest(FINGERPRINT, 1, 0.0))
    store.publish_shards(path, shards, new_manifest(FINGERPRINT, 2, 0.0))
    names = sorted(file.name for file in store.fetch(path).glob("*.parquet"))
    assert names == ["shard-00000.parquet", "shard-00001.parquet"]
    assert store.fetch_shard(shards[1], tmp_path).read_text() == "rows 1"
    Path(store.display(shards[0])).write_text("row")
    assert store.shard_manifest(shards[0]) is None
    assert store.manifest(path) is None


def test_staging_leaves_nothing_behind(store: Store) -> None:
    with pytest.raises(RuntimeError), store.staging() as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert store.names("tmp") == []


def test_files_are_replaced_whole(store: Store) -> None:
    store.write_json("a/b.json", {"n": 1})
    store.write_json("a/b.json", {"n": 2})
    assert store.read_json("a/b.json") == {"n": 2}
    assert store.names("a") == ["b.json"]
    assert store.read("a/c") is None
    store.append("a/log", b"1\n")
    store.append("a/log", b"2\n")
    assert store.read("a/log") == b"1\n2\n"


def test_any_pyarrow_file_system_is_a_store(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/by-uri")
    publish(store, "artifacts/x", a="content")
    assert (store.fetch("artifacts/x") / "a").read_text() == "content"
    assert pickle.loads(pickle.dumps(store)).manifest("artifacts/x") is not None


def test_what_pyarrow_does_not_know_is_opened_by_fsspec(tmp_path: Path) -> None:
    store = Store("memory://prefsweep-tests/a-store")
    artefact = tmp_path / "artefact"
    artefact.mkdir()
    (artefact / "file").write_bytes(b"content")
    store.publish("artifacts/one", artefact, new_manifest("f", 1, 0.0))
    again = Store("memory://prefsweep-tests/a-store")
    assert (again.fetch("artifacts/one") / "file").read_bytes() == b"content"
    assert again.names("artifacts") == ["one"]
    again.delete("artifacts/one")
    assert store.manifest("artifacts/one") is None
    with pytest.raises(UsageError, match="nosuch://place cannot be opened"):
        Store("nosuch://place")


def test_a_storage_that_cannot_be_opened_is_named() -> None:
    with pytest.raises(UsageError, match=r"--storage nosuch://bucket cannot be opened"):
        Store("nosuch://bucket")


def test_manifests_name_the_versions_that_made_them(store: Store) -> None:
    publish(store, "artifacts/x", a="content")
    document = json.loads((store.fetch("artifacts/x") / MANIFEST).read_text())
    assert {"torch", "trl", "transformers", "python"} <= document["environment"].keys()


@pytest.mark.parametrize("path", ["../x", "sweeps/../../x", "/etc/passwd", "sweeps/.."])
def test_no_path_leads_out_of_the_store(store: Store, path: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("not yours")
    for use in (
        lambda: store.read(path),
        lambda: store.write(path, b""),
        lambda: store.append(path, b""),
        lambda: store.names(path),
        lambda: store.delete(path),
        lambda: store.manifest(path),
        lambda: store.upload(tmp_path / "x", path),
    ):
        with pytest.raises(UsageError, match="is not a path inside the store"):
            use()
    assert (tmp_path / "x").read_text() == "not yours"


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/../../../x"])
def test_a_manifest_that_names_files_elsewhere_is_not_valid(store: Store, name: str) -> None:
    publish(store, "artifacts/x", a="content")
    manifest = Path(store.display("artifacts/x")) / MANIFEST
    document = json.loads(manifest.read_text())
    document["files"] = {name: document["files"]["a"]}
    manifest.write_text(json.dumps(document))
    assert store.manifest("artifacts/x") is None
