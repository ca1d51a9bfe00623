"""The shipped quickstart, as a newcomer runs it: the real command, on Ray, to the report."""

import csv
import shutil
from pathlib import Path

import pytest

from .faults.harness import Run

EXPECTED = {
    *(f"{loss}-beta{beta}" for loss in ("hinge", "sigmoid") for beta in ("0.05", "0.2", "1")),
    *(f"{name}-beta{beta}" for name in ("js_divergence", "forward_kl") for beta in ("0.1", "0.5")),
    "alpha_divergence0.3-beta0.1",
    "alpha_divergence0.7-beta0.1",
}
TIME_LIMIT_S = 800
FAMILY = (
    "p_versus_best",
    "frontier_probability",
    *(f"grid_point_{name}_ci_{end}" for name in ("gain", "win_rate") for end in ("low", "high")),
)
"""Columns about a trial among the others: one trial more changes them."""


def prefsweep(storage: Path, *words: str) -> str:
    """The output of the command, which has to succeed."""
    run = Run(storage, *words, env={"WANDB_MODE": "offline"})
    try:
        assert run.process.wait(TIME_LIMIT_S) == 0, run.output
    finally:
        run.clean_up()
    return run.output


@pytest.fixture(scope="module")
def storage(warm_workers: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "store"
    output = prefsweep(folder, "run", "quickstart")
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
    output = prefsweep(storage, "run", "quickstart")
    assert "trials: 0 to run, 12 cached" in output
    assert "running" not in output


def test_one_alpha_more_runs_its_trial_and_no_other(
    storage: Path, rows: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    rows = {name: dict(row) for name, row in rows.items()}
    copy = shutil.copytree(storage, tmp_path / "store")
    before = {path: path.stat().st_mtime_ns for path in copy.glob("trials/*/weights/*")}
    more = ["grid.2.alpha=[0.3,0.5,0.7]", "--inline"]
    output = prefsweep(copy, "run", "quickstart", *more)
    assert "trials: 1 to run, 12 cached" in output
    assert "trial 1/1 alpha_divergence0.5-beta0.1 succeeded" in output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(copy.glob("trials/*"))) == 13
    text = (copy / "sweeps/quickstart/report/trials.csv").read_text()
    longer = {row["name"]: row for row in csv.DictReader(text.splitlines())}
    assert set(longer) == set(rows) | {"alpha_divergence0.5-beta0.1"}
    for row in (*longer.values(), *rows.values()):
        for column in FAMILY:
            del row[column]
    assert {name: longer[name] for name in rows} == rows


def test_every_trial_has_an_offline_run_for_wandb_and_the_sweep_has_one(storage: Path) -> None:
    runs = list((storage / "sweeps/quickstart/wandb").glob("offline-run-*"))
    assert len(runs) == 13
