"""W&B leaves nothing in the system's temporary folder, and long names are kept apart."""

import tempfile
from pathlib import Path

import pytest

from prefsweep.orchestrator.store.paths import is_scratch_name
from prefsweep.orchestrator.tracking.wandb import WandbMirror
from prefsweep.orchestrator.tracking.wandb_files import (
    MAX_NAME,
    artifact_name,
    move_temporary_folders,
)
from prefsweep.sweeps.spec import WandbSpec

from .wandb_runs import CONFIG, UNTRAINED, recorded, result, sweep_of
from .wandb_runs import nothing_is_left as nothing_is_left
from .wandb_runs import own_home as own_home


def wandb_folders() -> list[Path]:
    """The folders that W&B has for media and for artifacts."""
    from wandb.sdk.artifacts.artifact import Artifact
    from wandb.sdk.data_types._private import MEDIA_TMP

    return [Path(MEDIA_TMP.name), Path(Artifact._TMP_DIR.name)]


def test_temporary_folders_of_wandb_go_where_the_next_run_deletes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = wandb_folders()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    move_temporary_folders.__wrapped__()
    for old, new in zip(before, wandb_folders(), strict=True):
        assert not old.exists() and new.is_dir()
        assert is_scratch_name(new.parent.name)
        assert new.parent.parent.parent == tmp_path
    assert not list(tmp_path.glob("tmp*"))


def test_a_mirrored_sweep_leaves_no_folder_of_wandb(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"weights")
    mirror = WandbMirror(
        WandbSpec(log_artifacts=("weights", "pairs")), "demo", CONFIG, tmp_path / "tracking"
    )
    mirror.trial_started("aa", "aa", {})
    mirror.trial_finished(result("aa"), lambda: weights)
    mirror.finish(sweep_of([UNTRAINED, result("aa")]), lambda: weights)
    assert recorded(tmp_path / "tracking").keys() == {"demo-aa", "demo-results"}
    assert not [f for f in wandb_folders() if f.parent == Path(tempfile.gettempdir())]


@pytest.mark.parametrize(
    "name", ["demo-sigmoid-beta0.1", "x" * MAX_NAME, "demo_1.5-pairs"], ids=["short", "128", "dots"]
)
def test_names_that_wandb_takes_are_left(name: str) -> None:
    assert artifact_name(name) == name


def test_long_names_that_begin_alike_stay_apart() -> None:
    """A combination of many losses, and grid points that differ in the last digits."""
    losses = (
        "sigmoid+hinge+ipo+nca_pair+robust+bco_pair+sppo_hard+aot+aot_unpaired+apo_zero+apo_down"
    )
    names = [f"a_rather_long_name_of_a_sweep-{losses}-beta0.123456789-lr{n}e-6" for n in range(40)]
    assert len(names[0]) > MAX_NAME
    short = [artifact_name(name) for name in names]
    assert len(set(short)) == len(names)
    assert all(len(name) == MAX_NAME and name.startswith("a_rather") for name in short)
    assert [artifact_name(name) for name in names] == short
