"""The store: artefacts, trials and sweeps in a local folder or at any pyarrow.fs URI.

    artifacts/<stage>-<fingerprint>/        content-addressed, shared by all sweeps in the store
        manifest.json                       sizes and SHA-256 of the files; written last
        shard-00000.parquet(.json)          sharded stages: every shard has its own small manifest
    trials/<trial_id>/
        trial.json  metrics.jsonl  status.json  trial.log
        weights/  checkpoints/step-00040/  evaluations/<fingerprint>/      each with a manifest
    sweeps/<name>/
        spec.json  plan.json  state.json  lease.json  stop.json  report/  wandb/
    tmp/  aside/                            unfinished and damaged files (`prefsweep gc`)
    prefsweep-store.json  gc.lock           marks the store; locked by `gc` while it deletes

An artefact with a valid manifest is finished. In a local store it is published with one rename; in
an object store, or if it has shards, its manifest is written last. One that is published is reused.
"""

import json
import logging
import shutil
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from prefsweep.orchestrator.store.downloads import download_cache, downloaded, drop_copies
from prefsweep.orchestrator.store.files import (
    MAX_RECORD_BYTES,
    OddFileError,
    append_line,
    complete,
    delete,
    file_versions,
    locked_file,
    move,
    num_bytes,
    read_file,
    replace_file,
)
from prefsweep.orchestrator.store.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    damaged_files,
    fault,
    file_entries,
    file_entry,
    manifest_json,
    parse_manifest,
)
from prefsweep.orchestrator.store.manifest import environment as environment
from prefsweep.orchestrator.store.manifest import new_manifest as new_manifest
from prefsweep.orchestrator.store.paths import ASIDE, MARKER, Paths, is_sweep_name
from prefsweep.orchestrator.store.retry import attempt
from prefsweep.orchestrator.store.root import RootThere, inside, open_storage
from prefsweep.orchestrator.store.root import absolute as absolute
from prefsweep.orchestrator.store.scratch import (
    delete_abandoned,
    owners,
    scratch_folder,
    scratch_home,
    scratch_name,
)
from prefsweep.sweeps.errors import DamagedError, StoreError

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class Store(Paths):
    """One store. It can be pickled; each process opens its own file system."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.fs, self._root = open_storage(uri)
        self.is_local = isinstance(self.fs, fs.LocalFileSystem)
        self._root_there = RootThere(self._root if self.is_local else None)
        self._verified, self._reported = set[str](), set[str]()

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.uri,)

    def display(self, path: str) -> str:
        """The path or URI under which the user can open it."""
        return f"{self._root}/{path}" if self.is_local else f"{self.uri.split('?')[0]}/{path}"

    # --- files -----------------------------------------------------------------------------------

    def read(self, path: str) -> bytes | None:
        """The file's content, or None if there is no such file."""
        return self._attempt(path, "read", lambda: read_file(self.fs, self._full(path), None))

    def read_record(self, path: str) -> bytes | None:
        """The content of a record or a log, or None if there is no such file.

        If it is not a regular file, or exceeds MAX_RECORD_BYTES, it counts as damaged: b"".
        """
        try:
            look = partial(read_file, self.fs, self._full(path), MAX_RECORD_BYTES)
            return self._attempt(path, "read", look)
        except OddFileError:
            return b""

    def write(self, path: str, data: bytes) -> None:
        """Write a file atomically, where the file system can rename."""

        def fill(target: str) -> None:
            with self.fs.open_output_stream(target) as stream:
                stream.write(data)

        self._attempt(path, "written", lambda: self._replace(path, fill))

    def read_json(self, path: str) -> Any:
        """The parsed JSON file; None if it is missing or damaged."""
        data = self.read_record(path)
        try:
            return None if data is None else json.loads(data)
        except (ValueError, RecursionError):
            return None

    def read_object(self, path: str) -> dict[str, Any]:
        """The JSON object in a file; empty if it is missing, damaged or something else."""
        document = self.read_json(path)
        return document if isinstance(document, dict) else {}

    def write_json(self, path: str, value: Any) -> None:
        """Write `value` as indented JSON."""
        self.write(path, json.dumps(value, indent=2, ensure_ascii=False).encode())

    def append(self, path: str, line: bytes) -> None:
        """Append a line to a log. An object store cannot append; the whole object is rewritten."""
        if self.is_local:
            self._root_there.check()
            self._attempt(path, "written", lambda: append_line(Path(self._full(path)), line))
        else:
            self.write(path, (self.read(path) or b"") + line)

    def names(self, path: str) -> list[str]:
        """Names in a folder, sorted; empty if there is no such folder."""
        selector = fs.FileSelector(self._full(path), allow_not_found=True)
        infos = self._attempt(path, "listed", lambda: self.fs.get_file_info(selector))
        return sorted(info.base_name for info in infos)

    def sweeps(self) -> list[str]:
        """Names of the sweeps, sorted; other content of their folder is ignored."""
        selector = fs.FileSelector(self._full("sweeps"), allow_not_found=True)
        infos = self._attempt("sweeps", "listed", lambda: self.fs.get_file_info(selector))
        folders = (info.base_name for info in infos if info.type == fs.FileType.Directory)
        return sorted(filter(is_sweep_name, folders))

    @property
    def is_marked(self) -> bool:
        """Whether a run has marked this as a store; older versions wrote no mark."""
        return self.read_object(MARKER).get("format") == "prefsweep store"

    def mark(self) -> None:
        """Mark this as a store."""
        self.write_json(MARKER, {"format": "prefsweep store", "version": 1})

    def file_versions(self, paths: Sequence[str]) -> list[tuple[int, int]]:
        """Values that change when the files change; far cheaper than reading the files."""
        look = partial(file_versions, self.fs, [*map(self._full, paths)])
        return self._attempt("", "listed", look)

    def num_bytes(self, path: str) -> int:
        """Size in bytes of a file, or of all files below a folder."""
        return self._attempt(path, "read", lambda: num_bytes(self.fs, self._full(path)))

    def delete(self, path: str) -> None:
        """Delete a folder or file if it exists. Raises StoreError if a parent folder is a link."""
        self._attempt(path, "deleted", lambda: delete(self.fs, self._root, self._full(path)))

    def locked(self, path: str) -> AbstractContextManager[None]:
        """Hold an exclusive lock on a path. An object store has no locks: no process waits."""
        self._root_there.check()
        return locked_file(Path(self._full(path))) if self.is_local else nullcontext()

    # --- artefacts -------------------------------------------------------------------------------

    def manifest(self, path: str) -> Manifest | None:
        """The manifest of a finished artefact; None if it is unfinished or files are missing."""
        data = self.read_record(f"{path}/{MANIFEST}")
        if data is None:
            return None
        manifest = parse_manifest(data)
        sizes = self._sizes([f"{path}/{name}" for name in manifest.files]) if manifest else []
        wrong = fault(manifest, path, sizes)
        if not wrong:
            return manifest
        if path not in self._reported:
            self._reported.add(path)
            log.warning("%s is damaged (%s) and counts as missing", self.display(path), wrong)
        return None

    def staging(self) -> AbstractContextManager[Path]:
        """A temporary folder to make an artefact in, deleted at the end."""
        self._root_there.check()
        return scratch_folder(self._scratch_parent())

    def delete_abandoned(self) -> int:
        """Delete unfinished files of ended processes of this machine; returns their number."""
        return sum(map(delete_abandoned, self._scratch_places()))

    def scratch_owners(self) -> set[int]:
        """IDs of the processes of this machine that have unfinished files."""
        return set().union(*map(owners, self._scratch_places()))

    def publish(self, path: str, folder: Path, manifest: Manifest) -> None:
        """Publish a folder as the artefact at `path`; does nothing if that is finished."""
        if self.manifest(path) is not None:
            return
        files = file_entries(folder)
        document = manifest_json(manifest, files)
        if self.is_local:
            self._attempt(path, "written", lambda: complete(folder, MANIFEST, document))
            self._attempt(path, "written", lambda: self._rename_into_place(folder, path))
            return
        self.delete(f"{path}/{MANIFEST}")
        for name in files:
            self.upload(folder / name, f"{path}/{name}")
        self.write(f"{path}/{MANIFEST}", document)

    def publish_shard(self, path: str, file: Path, manifest: Manifest) -> None:
        """Publish a file, then its manifest, as the shard at `path`, unless that is finished."""
        if self.shard_manifest(path) is not None:
            return
        entry = {PurePosixPath(path).name: file_entry(file)}
        self.delete(f"{path}.json")
        self.upload(file, path)
        self.write(f"{path}.json", manifest_json(manifest, entry))

    def shard_manifest(self, path: str) -> Manifest | None:
        """The manifest of a finished shard; None if it is unfinished or damaged."""
        manifest = parse_manifest(self.read_record(f"{path}.json"))
        name = PurePosixPath(path).name
        if manifest is None or name not in manifest.files:
            return None
        return manifest if self._sizes([path]) == [manifest.files[name].size] else None

    def finished_shard(self, path: str) -> Manifest:
        """The manifest of a finished shard. Raises DamagedError if it is unfinished."""
        manifest = self.shard_manifest(path)
        if manifest is None:
            raise DamagedError(f"{self.display(path)} is missing or damaged; it will be rebuilt")
        return manifest

    def fetch_shard(self, path: str, folder: Path) -> Path:
        """A verified local copy of a shard. Sets a damaged one aside and raises DamagedError."""
        manifest, local = self.finished_shard(path), folder / PurePosixPath(path).name
        for _ in range(2):  # the second read distinguishes a bad read from bad content
            self._copy_here(path, local)
            if file_entry(local) == manifest.files[local.name]:
                return local
        self._set_aside_damaged(str(PurePosixPath(path).parent), [local.name])
        raise AssertionError("_set_aside_damaged raises")

    def publish_shards(self, path: str, shards: list[str], manifest: Manifest) -> None:
        """Write the manifest of all shards, if missing. Raises DamagedError for a missing shard."""
        if self.manifest(path) is not None:
            return
        files: dict[str, FileEntry] = {}
        for shard in shards:
            files |= self.finished_shard(shard).files
        self.write(f"{path}/{MANIFEST}", manifest_json(manifest, files))

    def fetch(self, path: str) -> Path:
        """A local folder with the artefact's files, their content verified once per process.

        Raises DamagedError if the artefact is unfinished, or if its content has changed. In the
        second case it sets the damaged files aside before raising.
        """
        manifest = self.manifest(path)
        if manifest is None:
            raise DamagedError(f"{self.display(path)} is not a finished artefact")
        folder = Path(self._full(path)) if self.is_local else self._download(path, manifest)
        if path in self._verified:
            return folder
        if not self.is_local and damaged_files(folder, manifest):
            shutil.rmtree(folder)  # perhaps only the local copy is damaged: download it again
            folder = self._download(path, manifest)
        if damaged_files(folder, manifest):  # then read a second time, to rule out a bad read
            self._set_aside_damaged(path, damaged_files(folder, manifest))
        self._verified.add(path)
        return folder

    def drop_copies(self, path: str) -> None:
        """Delete this machine's copies of everything at or below `path` in a remote store."""
        if not self.is_local:
            drop_copies(self.uri, path)
            self._verified = {p for p in self._verified if not p.startswith(path)}

    def read_columns(self, path: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of all parquet files of a finished artefact, unverified, for display."""
        manifest = self.manifest(path)
        if manifest is None:
            raise StoreError(f"{self.display(path)} is not a finished artefact")
        files = [f"{path}/{name}" for name in sorted(manifest.files) if name.endswith(".parquet")]
        try:
            read = partial(pq.read_table, filesystem=self.fs, columns=list(columns))
            tables = [read(self._full(file)) for file in files]
        except (pa.ArrowException, OSError) as error:
            self._verified.discard(path)
            self.fetch(path)  # raises DamagedError if damage is the reason
            raise StoreError(f"{self.display(path)} cannot be read: {error}") from error
        return pa.concat_tables(tables)

    def upload(self, file: Path, path: str) -> None:
        """Copy a local file to `path`, atomically where the file system can rename."""

        def fill(target: str) -> None:
            fs.copy_files(str(file), target, fs.LocalFileSystem(), self.fs)

        self._attempt(path, "written", lambda: self._replace(path, fill))

    def set_aside(self, path: str) -> None:
        """Move a damaged artefact or file to `aside`, so that it counts as missing.

        An object store cannot rename: there the artefact's manifest, or the file, is deleted.
        """
        if self.is_local:
            name = f"{path.replace('/', '~')}.{uuid.uuid4().hex[:8]}"
            source, aside = Path(self._full(path)), Path(self._full(f"{ASIDE}/{name}"))
            self._attempt(path, "set aside", lambda: move(source, aside))
        elif self._sizes([path]) == [None]:
            self.delete(f"{path}/{MANIFEST}")
        else:
            self.delete(path)

    def _set_aside_damaged(self, path: str, names: list[str]) -> None:
        """If `names` is not empty, set them or the whole artefact aside and raise DamagedError."""
        if not names:
            return
        shards = [name for name in names if self._sizes([f"{path}/{name}.json"]) != [None]]
        if shards == names:
            self.delete(f"{path}/{MANIFEST}")
            for name in shards:
                self.set_aside(f"{path}/{name}.json")
                self.set_aside(f"{path}/{name}")
        else:
            self.set_aside(path)
        raise DamagedError(
            f"{self.display(path)}/{names[0]} is damaged: its content differs from its manifest. "
            "It was set aside; run the same command again to rebuild it"
        )

    def _download(self, path: str, manifest: Manifest) -> Path:
        names, copy = manifest.files, lambda name, local: self._copy_here(f"{path}/{name}", local)
        return downloaded(self.uri, path, manifest.created, names, copy)

    def _copy_here(self, path: str, local: Path) -> None:
        source, here = self._full(path), fs.LocalFileSystem()
        self._attempt(path, "read", lambda: fs.copy_files(source, str(local), self.fs, here))

    def _rename_into_place(self, folder: Path, path: str) -> None:
        """Publish with one rename. A finished artefact there is used, a damaged one set aside."""
        target = Path(self._full(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        while folder.is_dir():
            try:
                folder.rename(target)
            except OSError:
                if not target.exists():
                    raise
                if self.manifest(path) is not None:  # published by another process: equal content
                    return
                self.set_aside(path)

    def _replace(self, path: str, fill: Callable[[str], None]) -> None:
        """Have `fill` write a file, then rename it, so that no reader sees an incomplete file."""
        self._root_there.check()
        if self.is_local:
            scratch = self._scratch_parent() / scratch_name()
            replace_file(Path(self._full(path)), scratch, fill)
        else:
            fill(self._full(path))

    def _sizes(self, paths: list[str]) -> list[int | None]:
        """Size in bytes of each file; None for a missing one."""
        look = partial(self.fs.get_file_info, [*map(self._full, paths)])
        infos = self._attempt(paths[0] if paths else "", "read", look)
        return [info.size for info in infos]

    def _attempt(self, path: str, verb: str, call: Callable[[], Result]) -> Result:
        return attempt(self.display(path), verb, call)

    def _scratch_parent(self) -> Path:
        """Where files are made before they are published: on the store's disk if it has one."""
        return Path(self._full("tmp")) if self.is_local else scratch_home()

    def _scratch_places(self) -> set[Path]:
        return {self._scratch_parent(), scratch_home(), download_cache()}

    def _full(self, path: str) -> str:
        return inside(self._root, path)
