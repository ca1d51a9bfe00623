"""What a finished artefact says of itself: its files with their hashes, and how it came to be."""

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
"""Whose versions are recorded."""
_ARTIFACT = re.compile(r"(\w+)-([0-9a-f]{16})")


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

    @property
    def made_at(self) -> float:
        """Seconds since 1970, whole ones; 0 where it is not told."""
        return datetime.fromisoformat(self.created).timestamp() if self.created else 0.0


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
        environment=environment() | node(),
    )


def environment() -> dict[str, str]:
    """Versions and machine, recorded beside every result."""
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
    """Those of all files below a local folder, in order."""
    files = [item for item in sorted(folder.rglob("*")) if item.is_file()]
    return {file.relative_to(folder).as_posix(): file_entry(file) for file in files}


def damaged_files(folder: Path, manifest: Manifest) -> list[str]:
    """Files of a local copy whose content is not what the manifest says."""
    return [name for name, entry in manifest.files.items() if _entry_now(folder / name) != entry]


def _entry_now(path: Path) -> FileEntry | None:
    """None for a file that is not there, or is taken away while it is read."""
    try:
        return file_entry(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def manifest_json(manifest: Manifest, files: dict[str, FileEntry]) -> bytes:
    """The manifest of those files, as it is stored."""
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
    is_whole = all(isinstance(number, int | float) for number in numbers)
    is_whole = is_whole and all(isinstance(text, str) for text in texts)
    return manifest if is_whole and all(_is_inside(name) for name in files) else None


def fault(manifest: Manifest | None, path: str, sizes: list[int | None]) -> str:
    """What is wrong with the artefact at `path`, whose files have these sizes; "" if nothing is."""
    if manifest is None:
        return "its manifest cannot be read"
    if not _belongs_at(manifest, path):
        return "its manifest is that of something else"
    is_whole = sizes == [entry.size for entry in manifest.files.values()]
    return "" if is_whole else "a file is missing or cut short"


def _belongs_at(manifest: Manifest, path: str) -> bool:
    """Whether a manifest is of the artefact that its path, made of the spec's identity, stands for.

    What workers read of the driver's disk (`input`) is found by another name of its content.
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
    """Whether a file of an artefact lies below its folder."""
    parts = name.split("/")
    return bool(name) and "" not in parts and ".." not in parts


def node() -> dict[str, str]:
    """The node of the Ray cluster that this process is on, if it is on one, for manifests."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return {}
    return {"node": ray.get_runtime_context().get_node_id()}
