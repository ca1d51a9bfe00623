"""tracking: what W&B is given, read back from its own files."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest

from prefsweep.orchestrator.state.sweep import Trial
from prefsweep.orchestrator.tracking import wandb as tracking
from prefsweep.orchestrator.tracking.rows import trial_config
from prefsweep.orchestrator.tracking.wandb import WandbMirror
from prefsweep.sweeps.errors import StoreError
from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.records import Status
from prefsweep.sweeps.spec import WandbSpec

from .fake_wandb import fake_wandb
from .report_fixture import sweep_results
from .wandb_runs import (
    CONFIG,
    DEAD_SERVER,
    KEY,
    UNTRAINED,
    Recorded,
    mirror_two_trials,
    recorded,
    result,
    sweep_of,
    warnings,
)
from .wandb_runs import nothing_is_left as nothing_is_left
from .wandb_runs import own_home as own_home


def test_without_a_key_every_trial_and_the_sweep_are_recorded_offline(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    mirror = WandbMirror(WandbSpec(project="films"), "demo", CONFIG, tmp_path / "tracking")
    mirror_two_trials(mirror)
    runs = recorded(tmp_path / "tracking")
    assert set(runs) == {"demo-aaa", "demo-bbb", "demo-results"}

    trial = runs["demo-aaa"]
    assert (trial.run.display_name, trial.run.run_group) == ("sigmoid-betaaaa", "demo")
    assert (trial.run.job_type, trial.run.project) == ("trial", "films")
    assert (trial.config["beta"], trial.config["spec"]) == (0.1, CONFIG)
    assert trial.x_axes["*"] == "train/global_step"
    first, second = trial.history[:2]
    assert first["train/global_step"] == 1
    assert (first["train/loss"], first["eval/kl"]) == (0.6931, 0.5)
    assert "train/none" not in first
    assert second["train/loss"] == "NaN" or math.isnan(float(str(second["train/loss"])))
    assert trial.summary["reward_mean"] == 1.5
    assert (trial.summary["train_seconds"], trial.summary["status"]) == (3.5, "succeeded")
    assert "win_rate" not in trial.summary
    (table,) = (trial.folder / "files" / "media" / "table").glob("samples_*.json")
    samples = json.loads(table.read_text())
    assert samples["columns"] == ["prompt", "completion", "reward", "kl"]
    assert samples["data"] == [["The film", " was good", 0.5, 1.25]]

    assert (trial.exit_code, runs["demo-bbb"].exit_code) == (0, 1)
    assert runs["demo-bbb"].summary["error"] == "loss is nan"
    sweep = runs["demo-results"]
    assert (sweep.run.job_type, sweep.run.display_name) == ("sweep", "demo")
    assert (sweep.summary["num_succeeded"], sweep.summary["num_failed"]) == (1, 1)
    (table,) = (sweep.folder / "files" / "media" / "table").glob("results_*.json")
    rows = json.loads(table.read_text())
    by_column = [dict(zip(rows["columns"], row, strict=True)) for row in rows["data"]]
    assert [row["trial_id"] for row in by_column] == ["untrained", "aaa", "bbb"]
    assert [row["reward_mean"] for row in by_column] == [0.25, 1.5, 1.5]
    assert (by_column[0]["beta"], by_column[1]["beta"]) == (None, 0.1)
    assert by_column[2]["error"] == "loss is nan"

    assert warnings(caplog) == []
    assert capfd.readouterr() == ("", "")


def test_a_trials_config_is_flat_so_that_wandb_can_group_and_filter_by_it() -> None:
    spec = TrialSpec(loss_type="ipo", beta=0.3, learning_rate=1e-4, seed=2)
    config = trial_config(Trial("aaa", "ipo-beta0.3-seed2", spec), "demo")
    assert config["sweep"] == "demo" and config["trial_id"] == "aaa"
    assert (config["loss_type"], config["f_divergence_type"]) == ("ipo", "reverse_kl")
    assert (config["beta"], config["learning_rate"], config["seed"]) == (0.3, 1e-4, 2)
    assert config["alpha"] is None
    assert not any(isinstance(value, dict) for value in config.values())


def test_the_sweeps_run_has_the_reports_plots_and_its_grid_points(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = WandbMirror(WandbSpec(), "demo", CONFIG, tmp_path)
    mirror.trial_started("aaa", "a", {})
    mirror.finish(sweep_results(num_prompts=12))
    run = recorded(tmp_path)["demo-results"]
    media = run.folder / "files" / "media"
    (plot,) = (media / "plotly" / "plots").glob("reward-kl_*.json")
    figure = json.loads(plot.read_text())
    assert figure["layout"]["title"]["text"] == "Reward against KL"
    assert any("hinge" in trace.get("name", "") for trace in figure["data"])
    names = {path.name.rsplit("_", 2)[0] for path in (media / "plotly" / "plots").iterdir()}
    assert {"reward-kl", "reward-entropy", "reward-beta", "reward-box-f0"} <= names
    (table,) = (media / "table").glob("grid_points_*.json")
    rows = json.loads(table.read_text())
    points = [dict(zip(rows["columns"], row, strict=True)) for row in rows["data"]]
    assert len(points) == 11  # one of the twelve failed
    assert points[0]["grid_point"] == "hinge-beta0.05" and points[0]["seeds"] == 1
    assert any(point["indistinguishable_from_best"] for point in points)
    assert warnings(caplog) == []


def test_weights_and_pairs_are_artifacts_where_they_were_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "artefact"
    folder.mkdir()
    (folder / "adapter.safetensors").write_bytes(b"weights")
    spec = WandbSpec(log_artifacts=("weights", "pairs"))
    mirror = WandbMirror(spec, "demo", CONFIG, tmp_path / "tracking")
    for trial_id in ("a+a", "bbb"):
        mirror.trial_started(trial_id.replace("+", ""), trial_id, {})
    done = replace(result("aa"), name="sigmoid+sft")
    mirror.trial_finished(done, lambda: folder)
    mirror.trial_finished(result("bbb", Status.FAILED), lambda: folder)
    mirror.finish(sweep_of([UNTRAINED, done]), lambda: folder)
    runs = recorded(tmp_path / "tracking")
    artifacts = {name: _own_artifacts(run) for name, run in runs.items()}
    assert artifacts["demo-aa"] == {"demo-sigmoid-sft": ("model", ["adapter.safetensors"])}
    assert artifacts["demo-bbb"] == {}
    assert artifacts["demo-results"] == {"demo-pairs": ("dataset", ["adapter.safetensors"])}
    assert warnings(caplog) == []


def _own_artifacts(run: Recorded) -> dict[str, tuple[str, list[str]]]:
    """Name -> type and files; W&B keeps tables as artifacts of its own, named run-..."""
    return {
        name: (artifact.type, [entry.path for entry in artifact.manifest.contents])
        for name, artifact in run.artifacts.items()
        if not name.startswith("run-")
    }


@pytest.mark.parametrize("broken", ["Plotly", "Artifact", "log_artifact"])
def test_a_plot_or_artifact_that_is_refused_costs_itself_only(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = fake_wandb(monkeypatch, broken)
    mirror = WandbMirror(WandbSpec(log_artifacts=("weights",)), "demo", CONFIG, tmp_path)
    mirror.trial_started("aaa", "a", {})
    mirror.trial_finished(result("aaa"), lambda: tmp_path)
    mirror.finish(sweep_results())
    assert [fake.calls.count(name) for name in ("Table", "summary", "finish")] == [3, 2, 2]
    (warning,) = warnings(caplog)
    assert f"{broken} is broken" in warning


def test_a_folder_that_cannot_be_fetched_is_told_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fetch() -> Path:
        raise StoreError("weights are damaged")

    fake = fake_wandb(monkeypatch)
    mirror = WandbMirror(WandbSpec(log_artifacts=("weights",)), "demo", CONFIG, tmp_path)
    mirror.trial_started("aaa", "a", {})
    mirror.trial_finished(result("aaa"), fetch)
    mirror.finish(sweep_of([UNTRAINED]))
    assert fake.calls.count("finish") == 2
    assert "weights are damaged" in warnings(caplog)[0]


def test_a_trial_that_was_still_running_is_closed_as_killed(tmp_path: Path) -> None:
    mirror = WandbMirror(WandbSpec(mode="offline"), "demo", CONFIG, tmp_path)
    mirror.trial_started("aaa", "a", {})
    mirror.log("aaa", {"step": 1, "loss": 0.5})
    mirror.finish(sweep_of([UNTRAINED]))
    run = recorded(tmp_path)["demo-aaa"]
    assert run.history[0]["train/loss"] == 0.5
    assert run.exit_code == 255


def test_a_dead_server_costs_one_timeout_and_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", DEAD_SERVER)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(tracking, "INIT_TIMEOUT_S", 1.0)
    mirror = WandbMirror(WandbSpec(mode="online"), "demo", CONFIG, tmp_path)
    assert mirror.mode == "online"
    begin = time.monotonic()
    mirror.trial_started("aaa", "a", {})
    mirror.log("aaa", {"step": 1, "loss": 0.5})
    mirror.trial_finished(result("aaa"))
    assert time.monotonic() - begin < 0.5
    mirror.finish(sweep_of([UNTRAINED, result("aaa")]))
    assert time.monotonic() - begin < 12
    (warning,) = warnings(caplog)
    assert "recording offline" in warning
    assert KEY not in caplog.text
    runs = recorded(tmp_path)
    assert runs["demo-aaa"].history[0]["train/loss"] == 0.5
    assert "demo-results" in runs


def test_secrets_stay_out_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_do-not-write-me")
    config = {"api_key": "hunter2", "a": [{"url": "s3://me:hunter2@host/x"}], "max_new_tokens": 7}
    mirror = WandbMirror(WandbSpec(), "demo", config, tmp_path)
    mirror_two_trials(mirror)
    spec = recorded(tmp_path)["demo-aaa"].config["spec"]
    assert spec == {"api_key": "***", "a": [{"url": "s3://***@host/x"}], "max_new_tokens": 7}
    for path in (tmp_path / "wandb").rglob("*"):
        if path.is_file():
            assert b"hunter2" not in (data := path.read_bytes())
            assert b"do-not-write-me" not in data
