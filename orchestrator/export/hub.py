"""Pushes an exported folder to a repository on the hub. The folder is not changed.

Raises UsageError for wrong options and for requests that the hub refuses, SweepError if the hub
fails.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prefsweep.orchestrator.text import one_line
from prefsweep.sweeps.errors import SweepError, UsageError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ADAPTER_CONFIG = "adapter_config.json"

_STALE = {
    "model": ["adapter_*", "base/*", "*.safetensors*", "config.json", "generation_config.json"],
    "dataset": ["data/*.parquet"],
}
"""Files of an earlier push that are deleted unless the new push has them; they affect loading."""


def check_push(repo: str) -> None:
    """Raise UsageError if a push to `repo` cannot work: bad id, offline, no token."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"--push-to-hub {repo}: {error}") from None
    if "/" not in repo:
        raise UsageError(f"--push-to-hub {repo}: write it as OWNER/{repo}")
    if constants.HF_HUB_OFFLINE:
        raise UsageError(
            f"--push-to-hub {repo}: HF_HUB_OFFLINE is set; unset it, or leave out --push-to-hub"
        )
    if not get_token():
        raise UsageError(
            f"--push-to-hub {repo}: there is no token; set HF_TOKEN to one with write access, or "
            "log in with `hf auth login`"
        )


def push(folder: Path, repo: str, kind: str, *, private: bool = False) -> str:
    """Push an exported folder to the hub; returns its address.

    `kind` is "model" or "dataset". Raises UsageError if the hub refuses, SweepError if it fails.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  httpx's or httpx2's, by version
    )

    api = HfApi()
    try:
        url = api.create_repo(repo, repo_type=kind, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo, repo_type=kind).private:
            raise UsageError(
                f"--push-to-hub {repo} exists and is public: nothing was pushed. Leave out "
                f"--private, or choose another id; the export is in {folder}"
            )
        with _for_the_hub(folder, repo) as pushed:
            _upload(api, pushed, repo, kind)
    except HfHubHTTPError as error:
        refused = 400 <= error.response.status_code < 500
        raise (UsageError if refused else SweepError)(_not_pushed(repo, folder, error)) from error
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise SweepError(_not_pushed(repo, folder, error)) from error
    return str(url)


def _upload(api: "HfApi", folder: Path, repo: str, kind: str) -> None:
    api.upload_folder(
        repo_id=repo,
        repo_type=kind,
        folder_path=folder,
        commit_message=f"Export a {kind} of prefsweep",
        delete_patterns=_STALE[kind],
    )


@contextmanager
def _for_the_hub(folder: Path, repo: str) -> Iterator[Path]:
    """The folder to push; an adapter that contains its base names the repository, not a path."""
    if not (folder / "base").is_dir():
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        linked = Path(scratch) / "export"
        files = [item for item in folder.rglob("*") if item.is_file()]
        for name in [item.relative_to(folder) for item in files]:
            (linked / name).parent.mkdir(parents=True, exist_ok=True)
            (linked / name).symlink_to(folder / name)
        name_base(linked / ADAPTER_CONFIG, repo, None)
        yield linked


def _not_pushed(repo: str, folder: Path, error: Exception) -> str:
    said = one_line(str(error)) or type(error).__name__
    return f"--push-to-hub {repo}: {said}. The export is in {folder}"


def name_base(config: Path, base: str, commit: str | None) -> None:
    """Make an adapter_config.json name its base: a path, or a hub id and commit."""
    document = json.loads(config.read_text(encoding="utf-8"))
    document |= {"base_model_name_or_path": base, "revision": commit}
    config.unlink()  # replaces a link, not the file it points to
    config.write_text(json.dumps(document, indent=2, sort_keys=True), encoding="utf-8")
