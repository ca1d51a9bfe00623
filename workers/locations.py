"""Resolves references to models and data: `builtin:`, `package:`, paths and hub IDs.

Nothing is loaded here, and neither torch nor transformers is imported, so that a driver can resolve
all references of a sweep before a worker starts.
"""

import hashlib
import importlib.util
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  httpx's or httpx2's, by version
    OfflineModeIsEnabled,
)

from prefsweep.sweeps.errors import DataError, ModelError, UsageError
from prefsweep.sweeps.sources import is_commit
from prefsweep.sweeps.spec import ModelSection, PolicySpec
from prefsweep.workers.folders import contents

BUILTIN = "builtin:"
PACKAGE = "package:"
ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class ModelSource:
    """A model that `from_pretrained` can load: a local folder or a hub ID, and how to load it."""

    path: str
    revision: str | None = None
    gguf_file: str | None = None
    trust_remote_code: bool = False
    dtype: str = "float32"


def local_path(reference: str) -> Path:
    """The path of `package:PACKAGE[/FILE]` inside an installed package, or of a plain path.

    The path need not exist. Raises UsageError if the package is not installed, or the user of
    ~NAME does not exist.
    """
    if not reference.startswith(PACKAGE):
        return expand(reference)
    package, _, inside = reference.removeprefix(PACKAGE).partition("/")
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise UsageError(f"{reference}: the Python package {package!r} is not installed here")
    return Path(next(iter(found.submodule_search_locations))) / inside


def expand(path: str) -> Path:
    """`path` with ~ and ~NAME expanded. Raises UsageError if there is no user NAME."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(f"{path}: there is no such user; write the full path") from None


def model_source(section: ModelSection) -> ModelSource:
    """Where the model of a spec section is loaded from (not for `builtin:` models)."""
    path = section.model
    if path.startswith(PACKAGE):
        path = str(local_path(path))
    is_policy = isinstance(section, PolicySpec)
    return ModelSource(
        path=path,
        revision=section.revision,
        gguf_file=section.gguf_file if is_policy else None,
        trust_remote_code=section.trust_remote_code,
        dtype=section.dtype if is_policy else "float32",
    )


def model_identity(section: ModelSection, field: str) -> str:
    """The identity of the model's weights in fingerprints: content hash, hub commit or version.

    `field` is the dotted name for messages. Raises ModelError if the model cannot be found.
    """
    from prefsweep.workers import builtin

    if section.model.startswith(BUILTIN):
        name = section.model.removeprefix(BUILTIN)
        if name not in builtin.BUILTIN_MODELS:
            raise ModelError(
                f"{field}={section.model}: no such built-in model; "
                f"the built-in models are {', '.join(builtin.BUILTIN_MODELS)}"
            )
        return f"{section.model}@{builtin.VERSION}"
    source = model_source(section)
    folder = Path(source.path)
    if os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
        try:
            if not section.model.startswith(PACKAGE):
                contents(folder)
            return _folder_identity(folder, source.gguf_file, field)
        except DataError as error:
            raise ModelError(f"{field}: {error}") from None
    if section.model.startswith((PACKAGE, "/", ".", "~")):
        raise ModelError(f"{field}={section.model}: there is no folder {folder}")
    return _hub_identity(section.model, section.revision, field)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, hex. Raises DataError if it cannot be read."""
    try:
        now = path.stat()
        stamp = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
        return _sha256(path.resolve(), stamp)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


@lru_cache(maxsize=4096)
def _sha256(path: Path, stamp: tuple[int, ...]) -> str:
    """The hash is cached by path and `stamp`, so that each process reads large weights once.

    `stamp` changes with the content: tools can set a modification time, but not the inode's time
    of change.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder_identity(folder: Path, gguf_file: str | None, field: str) -> str:
    if gguf_file is not None:
        if not os.path.isfile(folder / gguf_file):
            raise ModelError(f"{field}: gguf_file {gguf_file!r} is not in {folder}")
        return file_sha256(folder / gguf_file)
    names = sorted(item.name for item in folder.iterdir() if item.suffix in _MODEL_SUFFIXES)
    if ADAPTER in names:  # transformers would load its base, even beside other weights
        raise ModelError(_is_adapter(f"{field}={folder}", folder / ADAPTER))
    if "config.json" not in names:
        raise ModelError(f"{field}={folder}: not a model folder: it has no config.json")
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}:{file_sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def _is_adapter(named: str, config: Path) -> str:
    try:
        base = json.loads(config.read_text("utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    return (
        f"{named}: this is a LoRA adapter{f' of {base}' if base else ''}, not a model. Merge it "
        "into its base first: load it with peft's AutoPeftModelForCausalLM, call "
        "merge_and_unload() and save_pretrained(), and save the tokenizer beside it (for a trial "
        "of a sweep: `prefsweep export SWEEP TRIAL --to FOLDER --merge`)"
    )


_MODEL_SUFFIXES = frozenset({".json", ".safetensors", ".bin", ".txt", ".model", ".jinja", ".py"})


def _hub_identity(model: str, revision: str | None, field: str) -> str:
    """The commit of a hub model, from the hub, or else from the local cache."""
    try:
        if not os.environ.get("HF_HUB_OFFLINE"):
            found = HfApi().model_info(model, revision=revision, timeout=20)
            files = {sibling.rfilename for sibling in found.siblings or ()}
            if ADAPTER in files:
                raise ModelError(_is_adapter(f"{field}={model}", Path(ADAPTER)))
            return f"{model}@{_commit(found.sha, model, field)}"
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:
        raise ModelError(
            f"{field}={model}: neither a local folder nor a valid hub ID (owner/name)"
        ) from None
    except OfflineModeIsEnabled:
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
    except (HTTPError, OSError) as error:  # an error response, or no network
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
        if not isinstance(cached, str):
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"{field}={model}: not a local folder, not in the local Hugging Face cache, and "
                f"the hub answers: {said}. Check the ID (and HF_TOKEN, if it is gated), and the "
                "network"
            ) from None
    adapter = try_to_load_from_cache(model, ADAPTER, revision=revision)
    if isinstance(adapter, str) and Path(adapter).name == ADAPTER:
        raise ModelError(_is_adapter(f"{field}={model}", Path(adapter)))
    if not isinstance(cached, str):
        raise ModelError(
            f"{field}={model}: not a local folder and not in the local Hugging Face cache, and "
            "HF_HUB_OFFLINE is set. Download it first, or unset HF_HUB_OFFLINE"
        )
    return f"{model}@{_commit(Path(cached).parent.name, model, field)}"


def _commit(found: str | None, model: str, field: str) -> str:
    """Raises ModelError if the commit from the hub or the cache is not a commit hash."""
    if not is_commit(found):
        raise ModelError(f"{field}={model}: its commit {found!r} is not a commit hash")
    return found
