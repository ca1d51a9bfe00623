"""The manifest of a finished artefact: its files with their hashes, and how it was made."""

import hashlib
import json
import platform
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
PACKAGES = ("prefsweep", "torch", "transformers", "trl", "peft", "ray")
"""Packages whose versions are recorded."""
_ARTIFACT = re.compile(r"(\w+)-([0-9a-f]{16})")


@dataclass(frozen=True)
class FileEntry:
    """Size and content hash of one file of an artefact."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a finished artefact contains and how it was made."""

    fingerprint: str
    rows: int
    seconds: float
    files: dict[str, FileEntry]
    notes: dict[str, float] = field(default_factory=dict[str, float])
    created: str = ""
    environment: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def made_at(self) -> float:
        """Whole seconds since 1970; 0 if not recorded."""
        return datetime.fromisoformat(self.created).timestamp() if self.created else 0.0


def new_manifest(
    fingerprint: str, rows: int, seconds: float, notes: Mapping[str, float] | None = None
) -> Manifest:
    """A manifest for an artefact that this process has just made; the store fills in its files."""
    return Manifest(
        fingerprint=fingerprint,
        rows=rows,
        seconds=round(seconds, 3),
        files={},
        notes=dict(notes or {}),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment() | node(),
    )


def environment() -> dict[str, str]:
    """Package versions and the machine, recorded with every result."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "machine": platform.machine(),
        "host": socket.gethostname(),
    }


_version = cache(metadata.version)
"""Reading the metadata of a package takes milliseconds."""


def file_entry(path: Path) -> FileEntry:
    """Size and SHA-256 of a local file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(path.stat().st_size, digest)


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Sizes and hashes of all files below a local folder, sorted by path."""
    files = [item for item in sorted(folder.rglob("*")) if item.is_file()]
    return {file.relative_to(folder).as_posix(): file_entry(file) for file in files}


def damaged_files(folder: Path, manifest: Manifest) -> list[str]:
    """Files of a local copy whose content differs from the manifest."""
    return [name for name, entry in manifest.files.items() if _entry_now(folder / name) != entry]


def _entry_now(path: Path) -> FileEntry | None:
    """None if the file is missing, or is deleted while it is read."""
    try:
        return file_entry(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def manifest_json(manifest: Manifest, files: dict[str, FileEntry]) -> bytes:
    """The manifest with these files, as stored."""
    document = asdict(manifest) | {"files": {name: asdict(e) for name, e in files.items()}}
    return json.dumps(document, indent=2, sort_keys=True).encode()


def parse_manifest(data: bytes | None) -> Manifest | None:
    """The manifest in a file's content, or None if it is missing or damaged."""
    try:
        document: Any = json.loads(data or b"")
        files = {name: FileEntry(**entry) for name, entry in document["files"].items()}
        manifest = Manifest(**(document | {"files": files}))
        numbers = (manifest.rows, manifest.seconds, manifest.made_at, *manifest.notes.values())
        texts = (manifest.fingerprint, manifest.created, *manifest.environment.values())
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    is_valid = all(isinstance(number, int | float) for number in numbers)
    is_valid = is_valid and all(isinstance(text, str) for text in texts)
    return manifest if is_valid and all(_is_inside(name) for name in files) else None


def fault(manifest: Manifest | None, path: str, sizes: list[int | None]) -> str:
    """What is wrong with the artefact at `path`, whose files have these sizes; "" if valid."""
    if manifest is None:
        return "its manifest cannot be read"
    if not _belongs_at(manifest, path):
        return "its manifest belongs to another artefact"
    is_complete = sizes == [entry.size for entry in manifest.files.values()]
    return "" if is_complete else "a file is missing or truncated"


def _belongs_at(manifest: Manifest, path: str) -> bool:
    """Whether a manifest's fingerprint matches its path.

    The paths of `input` artefacts (copies from the driver's disk) are not made of the fingerprint.
    """
    match path.split("/"):
        case ["artifacts", name] if (found := _ARTIFACT.fullmatch(name)) and found[1] != "input":
            return manifest.fingerprint.startswith(found[2])
        case ["trials", _, "evaluations", fingerprint]:
            return manifest.fingerprint.startswith(fingerprint)
        case ["trials", trial_id, "weights" | "checkpoints", *_]:
            return manifest.fingerprint == trial_id
    return True


def _is_inside(name: str) -> bool:
    """Whether the name of an artefact's file is a path below its folder."""
    parts = name.split("/")
    return bool(name) and "" not in parts and ".." not in parts


def node() -> dict[str, str]:
    """The ID of the Ray node that this process runs on, for manifests; empty without Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return {}
    return {"node": ray.get_runtime_context().get_node_id()}
