"""The shipped quickstart, as a newcomer runs it: the real command, on Ray, to the report."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXPECTED = {
    *(f"{loss}-beta{beta}" for loss in ("hinge", "sigmoid") for beta in ("0.05", "0.2", "1")),
    *(f"{name}-beta{beta}" for name in ("js_divergence", "forward_kl") for beta in ("0.1", "0.5")),
    "alpha_divergence0.3-beta0.1",
    "alpha_divergence0.7-beta0.1",
}


def prefsweep(*words: str) -> str:
    command = [sys.executable, "-m", "prefsweep.orchestrator.commands.cli", *words]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    output = prefsweep("run", "quickstart", "--storage", str(folder))
    assert output.splitlines()[-1].endswith("sweeps/quickstart/report/index.html")
    assert "\x1b" not in output, "piped output has no control characters"
    return folder


@pytest.fixture(scope="module")
def rows(storage: Path) -> dict[str, dict[str, str]]:
    text = (storage / "sweeps/quickstart/report/trials.csv").read_text()
    return {row["name"]: row for row in csv.DictReader(text.splitlines())}


def test_twelve_trials_of_five_divergences_succeed(rows: dict[str, dict[str, str]]) -> None:
    assert set(rows) == EXPECTED | {"untrained"}
    assert next(iter(rows)) == "untrained"
    assert {row["status"] for row in rows.values()} == {"succeeded"}


def test_a_trial_is_better_than_the_untrained_policy_beyond_doubt(
    rows: dict[str, dict[str, str]],
) -> None:
    lows = [float(row["reward_ci_low"]) for name, row in rows.items() if name != "untrained"]
    assert max(lows) > float(rows["untrained"]["reward_ci_high"])


def test_kl_grows_as_beta_falls(rows: dict[str, dict[str, str]]) -> None:
    kls = [float(rows[f"sigmoid-beta{beta}"]["kl"]) for beta in ("1", "0.2", "0.05")]
    assert 0 < kls[0] < kls[1] < kls[2]


def test_the_second_run_finds_everything(storage: Path) -> None:
    output = prefsweep("run", "quickstart", "--storage", str(storage))
    assert "trials: 0 to run, 12 cached" in output
    assert "running" not in output


def test_one_alpha_more_runs_its_trial_and_no_other(
    storage: Path, rows: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    rows = {name: dict(row) for name, row in rows.items()}
    copy = shutil.copytree(storage, tmp_path / "store")
    before = {path: path.stat().st_mtime_ns for path in copy.glob("trials/*/weights/*")}
    more = ["grid.2.alpha=[0.3,0.5,0.7]", "--inline"]
    output = prefsweep("run", "quickstart", *more, "--storage", str(copy))
    assert "trials: 1 to run, 12 cached" in output
    assert "trial 1/1 alpha_divergence0.5-beta0.1 succeeded" in output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(copy.glob("trials/*"))) == 13
    text = (copy / "sweeps/quickstart/report/trials.csv").read_text()
    longer = {row["name"]: row for row in csv.DictReader(text.splitlines())}
    assert set(longer) == set(rows) | {"alpha_divergence0.5-beta0.1"}
    for row in (*longer.values(), *rows.values()):
        del row["p_versus_best"]  # of a family of comparisons, which is larger now
    assert {name: longer[name] for name in rows} == rows


def test_every_trial_has_an_offline_run_for_wandb_and_the_sweep_has_one(storage: Path) -> None:
    runs = list((storage / "sweeps/quickstart/wandb").glob("offline-run-*"))
    assert len(runs) == 13
