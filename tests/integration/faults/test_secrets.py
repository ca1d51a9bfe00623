"""Secrets in the environment of a run stay there: nothing that it writes holds one of them."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prefsweep.orchestrator.execution import ray_session, tuning
from prefsweep.orchestrator.execution.cluster import RayCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.sweeps.records import Status

from ..small import small_sweep

SECRETS = {
    "HF_TOKEN": "hf_Zq8vT1mNcX4rKpW7sYdLbJhG",
    "WANDB_API_KEY": "9f3b7c1d5e8a2046b7d9f1c3e5a7082946bd1f3a",
    "AWS_ACCESS_KEY_ID": "AKIAQ7PREFSWEEPTEST9",
    "AWS_SECRET_ACCESS_KEY": "w4nT/0uRk9Zb2qXs6YvCj8LmPd3HfGe7",
    "HTTPS_PROXY_PASSWORD": "pr0xy-p4ssw0rd-kept-private",
}
OWN_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5c7e9ab1d3f50617283940a1b2c3d4e5f6"}
"""Of the Ray that the run starts."""


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray keeps its session: a short path, because sockets are in it."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def holders(folder: Path, text: str) -> list[str]:
    """Files below a folder that hold `text`."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return [str(file) for file in files if text.encode() in file.read_bytes()]


def test_no_secret_is_in_the_store_ray_s_files_tune_s_or_wandb_s(
    warm_workers: None, ray_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def kept_folder(parent: Path) -> Iterator[Path]:
        folder = tmp_path / "tune"
        folder.mkdir(exist_ok=True)
        yield folder

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tuning, "scratch_folder", kept_folder)
    monkeypatch.setattr(ray_session, "private_token", lambda: OWN_TOKEN)
    sweep = small_sweep(
        tmp_path / "store",
        "tracking.wandb.mode=offline",
        "grid=[{beta: [0.1], learning_rate: 1e-3}]",
    )
    results = run_sweep(sweep, lambda: RayCluster(sweep.spec.resources, num_cpus=2))
    assert [result.status for result in results] == [Status.SUCCEEDED] * 2

    places = (tmp_path / "store", tmp_path / "tune", ray_folder)
    for place in places:  # there is something to find
        assert any(file.is_file() for file in place.rglob("*")), place
    assert list((tmp_path / "store").rglob("*.wandb"))
    assert holders(tmp_path / "store", "sigmoid") and holders(tmp_path / "tune", "trial_id")
    found = {
        name: files
        for name, value in (SECRETS | OWN_TOKEN).items()
        if name != "RAY_AUTH_MODE"
        if (files := [file for place in places for file in holders(place, value)])
    }
    assert found == {}
    assert os.environ["HF_TOKEN"] == SECRETS["HF_TOKEN"]  # the run has not dropped it either
