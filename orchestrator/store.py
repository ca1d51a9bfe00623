"""The only owner of paths: artefacts, trials and sweeps in a local folder or any pyarrow.fs URI.

    artifacts/<stage>-<fingerprint>/        content-addressed, shared by all sweeps in the store
        manifest.json                       sizes and SHA-256 of the files; written last
        shard-00000.parquet(.json)          sharded stages: every shard has its own small manifest
    trials/<trial_id>/
        trial.json  metrics.jsonl  status.json
        weights/  checkpoints/step-00040/  evaluations/<fingerprint>/      each with a manifest
    sweeps/<name>/
        spec.json  plan.json  state.json  report/  wandb/

"Done" means: a valid manifest exists. On a local file system an artefact appears by one rename; on
an object store its files come first and its manifest last.
"""

import hashlib
import json
import platform
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from prefsweep.sweeps.errors import StoreError, UsageError
from prefsweep.workers.locations import expand

MANIFEST = "manifest.json"
_FINGERPRINT_CHARS = 16
"""Hex digits of a fingerprint in a path; the manifest has it whole."""


@dataclass(frozen=True)
class FileEntry:
    """Size and content hash of one file of an artefact."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a finished artefact holds and how it came to be."""

    fingerprint: str
    rows: int
    seconds: float
    files: dict[str, FileEntry]
    notes: dict[str, float] = field(default_factory=dict[str, float])
    created: str = ""
    environment: dict[str, str] = field(default_factory=dict[str, str])


class Store:
    """One store. It can be pickled; every process opens the file system for itself."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            if "://" in uri:
                self.fs, self._root = fs.FileSystem.from_uri(uri)
            else:
                self.fs, self._root = fs.LocalFileSystem(), absolute(uri)
        except (pa.ArrowException, OSError, ValueError, UsageError) as error:
            raise UsageError(f"--storage {uri} cannot be opened: {error}") from None
        self.is_local = isinstance(self.fs, fs.LocalFileSystem)
        self._verified: set[str] = set()

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.uri,)

    # --- paths -----------------------------------------------------------------------------------

    def artifact(self, stage: str, fingerprint: str) -> str:
        """Path of a stage's artefact, relative to the store."""
        return f"artifacts/{stage}-{fingerprint[:_FINGERPRINT_CHARS]}"

    def shard(self, stage: str, fingerprint: str, index: int) -> str:
        """Path of one shard of a sharded artefact."""
        return f"{self.artifact(stage, fingerprint)}/shard-{index:05d}.parquet"

    def trial(self, trial_id: str, *parts: str) -> str:
        """Path inside a trial's folder."""
        return "/".join(["trials", trial_id, *parts])

    def evaluation(self, trial_id: str, fingerprint: str) -> str:
        """Path of an evaluation of a trial."""
        return self.trial(trial_id, "evaluations", fingerprint[:_FINGERPRINT_CHARS])

    def sweep(self, name: str, *parts: str) -> str:
        """Path inside a sweep's folder."""
        return "/".join(["sweeps", name, *parts])

    def display(self, path: str) -> str:
        """The path as the user can open it."""
        return f"{self._root}/{path}" if self.is_local else f"{self.uri.split('?')[0]}/{path}"

    # --- files -----------------------------------------------------------------------------------

    def read(self, path: str) -> bytes | None:
        """The file's content, or None if there is no such file."""
        try:
            with self.fs.open_input_stream(self._full(path)) as stream:
                return stream.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreError(f"{self.display(path)} cannot be read: {error}") from error

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole: temp file then rename where the file system can."""
        target = self._full(path)
        try:
            self._make_parent(target)
            written = f"{target}.{uuid.uuid4().hex[:8]}.tmp" if self.is_local else target
            with self.fs.open_output_stream(written) as stream:
                stream.write(data)
            if written != target:
                self.fs.move(written, target)
        except OSError as error:
            raise StoreError(f"{self.display(path)} cannot be written: {error}") from error

    def read_json(self, path: str) -> Any:
        """The parsed JSON file; None if it is missing or damaged."""
        data = self.read(path)
        try:
            return None if data is None else json.loads(data)
        except ValueError:
            return None

    def write_json(self, path: str, value: Any) -> None:
        """Write `value` as indented JSON."""
        self.write(path, json.dumps(value, indent=2, ensure_ascii=False).encode())

    def append(self, path: str, line: bytes) -> None:
        """Add a line to a log. An object store has no append: the object is written anew."""
        if self.is_local:
            full = self._full(path)
            self._make_parent(full)
            with Path(full).open("ab") as file:
                file.write(line)
        else:
            self.write(path, (self.read(path) or b"") + line)

    def names(self, path: str) -> list[str]:
        """Names in a folder, sorted; empty if there is no such folder."""
        selector = fs.FileSelector(self._full(path), allow_not_found=True)
        return sorted(info.base_name for info in self.fs.get_file_info(selector))

    def stamps(self, paths: Sequence[str]) -> list[tuple[int, int]]:
        """Size and time of change, ns, of every file: another stamp, another content; 0 for none.

        One look at many files is far cheaper than reading them.
        """
        infos = self.fs.get_file_info([self._full(path) for path in paths])
        return [(info.size or 0, info.mtime_ns or 0) for info in infos]

    def delete(self, path: str) -> None:
        """Delete a folder or file if it is there."""
        info = self.fs.get_file_info(self._full(path))
        if info.type == fs.FileType.Directory:
            self.fs.delete_dir(info.path)
        elif info.type == fs.FileType.File:
            self.fs.delete_file(info.path)

    @contextmanager
    def locked(self, path: str) -> Iterator[None]:
        """Alone among processes that lock the same path; on an object store that is not so."""
        if not self.is_local:
            yield
            return
        import fcntl

        full = self._full(path)
        self._make_parent(full)
        with Path(full).open("ab") as file:  # the kernel unlocks it when the process ends
            with suppress(OSError):  # a network file system without locks: advice only
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # --- artefacts -------------------------------------------------------------------------------

    def manifest(self, path: str) -> Manifest | None:
        """The manifest of a finished artefact; None if it is not finished or files are missing."""
        manifest = _parse_manifest(self.read_json(f"{path}/{MANIFEST}"))
        if manifest is None:
            return None
        full = [self._full(f"{path}/{name}") for name in manifest.files]
        infos = self.fs.get_file_info(full)
        sizes = [entry.size for entry in manifest.files.values()]
        return manifest if [info.size for info in infos] == sizes else None

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A scratch folder for an artefact in the making, deleted at the end."""
        parent = None
        if self.is_local:
            parent = Path(self._root) / "tmp"
            parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def publish(self, path: str, folder: Path, manifest: Manifest) -> None:
        """Make `folder`, with all files below it, the artefact at `path`; manifest last."""
        files = {
            item.relative_to(folder).as_posix(): file_entry(item)
            for item in sorted(folder.rglob("*"))
            if item.is_file()
        }
        document = _manifest_json(manifest, files)
        if self.is_local:
            (folder / MANIFEST).write_bytes(document)
            self._rename_into_place(folder, path)
            return
        self.delete(f"{path}/{MANIFEST}")
        for name in files:
            self.upload(folder / name, f"{path}/{name}")
        self.write(f"{path}/{MANIFEST}", document)

    def publish_shard(self, path: str, file: Path, manifest: Manifest) -> None:
        """Make `file` the shard at `path`, its small manifest last."""
        entry = {PurePosixPath(path).name: file_entry(file)}
        self.delete(f"{path}.json")
        self.upload(file, path)
        self.write(f"{path}.json", _manifest_json(manifest, entry))

    def shard_manifest(self, path: str) -> Manifest | None:
        """The manifest of a finished shard, None if it is not finished or was damaged."""
        manifest = _parse_manifest(self.read_json(f"{path}.json"))
        name = PurePosixPath(path).name
        if manifest is None or name not in manifest.files:
            return None
        info = self.fs.get_file_info(self._full(path))
        return manifest if info.size == manifest.files[name].size else None

    def fetch_shard(self, path: str, folder: Path) -> Path:
        """A verified local copy of one shard in `folder`. Raises StoreError if it is damaged."""
        manifest, local = self.shard_manifest(path), folder / PurePosixPath(path).name
        if manifest is not None:
            fs.copy_files(self._full(path), str(local), self.fs, fs.LocalFileSystem())
        if manifest is None or file_entry(local) != manifest.files[local.name]:
            raise StoreError(f"{self.display(path)} is missing or damaged; delete it, run again")
        return local

    def publish_shards(self, path: str, shards: list[str], manifest: Manifest) -> None:
        """Finish a sharded artefact: one manifest over all its shards."""
        files: dict[str, FileEntry] = {}
        for shard in shards:
            shard_manifest = self.shard_manifest(shard)
            if shard_manifest is None:
                raise StoreError(f"{self.display(shard)} is missing or damaged; run again")
            files |= shard_manifest.files
        self.write(f"{path}/{MANIFEST}", _manifest_json(manifest, files))

    def fetch(self, path: str) -> Path:
        """A local folder with the artefact's files, their content verified once per process.

        Raises StoreError if the artefact is not finished or its content is not what was written.
        """
        manifest = self.manifest(path)
        if manifest is None:
            raise StoreError(f"{self.display(path)} is not a finished artefact")
        folder = Path(self._full(path)) if self.is_local else self._download(path, manifest)
        if path not in self._verified:
            for name, entry in manifest.files.items():
                if file_entry(folder / name) != entry:
                    raise StoreError(
                        f"{self.display(path)}/{name} is damaged: its content is not what its "
                        "manifest says. Delete that folder and run again"
                    )
            self._verified.add(path)
        return folder

    def read_columns(self, path: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of all parquet files of a finished artefact, read where they are.

        Content is not verified: for what is shown, not for what is worked with.
        """
        manifest = self.manifest(path)
        if manifest is None:
            raise StoreError(f"{self.display(path)} is not a finished artefact")
        files = [f"{path}/{name}" for name in sorted(manifest.files) if name.endswith(".parquet")]
        try:
            tables = [
                pq.read_table(self._full(file), filesystem=self.fs, columns=list(columns))
                for file in files
            ]
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{self.display(path)} cannot be read: {error}") from error
        return pa.concat_tables(tables)

    def upload(self, file: Path, path: str) -> None:
        """Copy a local file to `path`, by temp and rename where the file system can."""
        target = self._full(path)
        self._make_parent(target)
        written = f"{target}.{uuid.uuid4().hex[:8]}.tmp" if self.is_local else target
        try:
            fs.copy_files(str(file), written, fs.LocalFileSystem(), self.fs)
            if written != target:
                self.fs.move(written, target)
        except OSError as error:
            raise StoreError(f"{self.display(path)} cannot be written: {error}") from error

    def _download(self, path: str, manifest: Manifest) -> Path:
        key = hashlib.sha256(f"{self.uri}/{path}/{manifest.created}".encode()).hexdigest()[:24]
        cache = Path(tempfile.gettempdir()) / "prefsweep-cache" / key
        if not cache.is_dir():
            partial = cache.with_name(f"{key}.{uuid.uuid4().hex[:8]}")
            partial.mkdir(parents=True)
            for name in manifest.files:
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                source = self._full(f"{path}/{name}")
                fs.copy_files(source, str(partial / name), self.fs, fs.LocalFileSystem())
            try:
                partial.rename(cache)
            except OSError:  # another process of this machine was first
                shutil.rmtree(partial, ignore_errors=True)
        return cache

    def _rename_into_place(self, folder: Path, path: str) -> None:
        target = Path(self._full(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.rename(target)
        except OSError:
            if self.manifest(path) is not None:  # made by another process meanwhile: equal content
                return
            shutil.rmtree(target)
            folder.rename(target)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _make_parent(self, full: str) -> None:
        if self.is_local:
            Path(full).parent.mkdir(parents=True, exist_ok=True)


def absolute(storage: str) -> str:
    """A storage that means the same in every process: local paths made absolute."""
    return storage if "://" in storage else str(expand(storage).resolve())


def new_manifest(
    fingerprint: str, rows: int, seconds: float, notes: Mapping[str, float] | None = None
) -> Manifest:
    """A manifest for what was just made here, now; its files are filled in by the store."""
    return Manifest(
        fingerprint=fingerprint,
        rows=rows,
        seconds=round(seconds, 3),
        files={},
        notes=dict(notes or {}),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment(),
    )


def environment() -> dict[str, str]:
    """Versions and machine, recorded beside every result."""
    packages = ("prefsweep", "torch", "transformers", "trl", "peft", "ray")
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "machine": platform.machine(),
        "host": socket.gethostname(),
    }


def file_entry(path: Path) -> FileEntry:
    """Size and SHA-256 of a local file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(path.stat().st_size, digest)


def _manifest_json(manifest: Manifest, files: dict[str, FileEntry]) -> bytes:
    document = asdict(manifest) | {"files": {name: asdict(e) for name, e in files.items()}}
    return json.dumps(document, indent=2, sort_keys=True).encode()


def _parse_manifest(document: Any) -> Manifest | None:
    try:
        files = {name: FileEntry(**entry) for name, entry in document["files"].items()}
        return Manifest(**(document | {"files": files}))
    except (TypeError, KeyError, AttributeError):
        return None
