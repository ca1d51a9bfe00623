"""tracking: what W&B is given, and that nothing it does reaches the sweep."""

import json
import logging
import math
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from prefsweep.orchestrator.sweep import Trial
from prefsweep.orchestrator.watching import tracking
from prefsweep.orchestrator.watching.mirrored import trial_config
from prefsweep.orchestrator.watching.tracking import WandbMirror, wandb_mode
from prefsweep.sweeps.errors import StoreError
from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.records import EvaluationSample, Failure, Status, SweepResults, TrialResult
from prefsweep.sweeps.spec import WandbSpec

from .report_fixture import sweep_results

KEY = "0123456789abcdef" * 3
DEAD_SERVER = "http://127.0.0.1:9"
CONFIG: dict[str, object] = {"name": "demo", "training": {"max_steps": 20}}


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No W&B settings of the person who tests, and none of their folders."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-home" / name.lower()))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def nothing_is_left(own_home: Path) -> Iterator[None]:
    threads, children, hooks = threading.enumerate(), _children(), (sys.exit, sys.excepthook)
    yield
    assert _children() == children
    assert [t for t in threading.enumerate() if t not in threads] == []
    assert (sys.exit, sys.excepthook) == hooks
    assert not own_home.exists()


def _children() -> set[str]:
    return {
        pid
        for path in Path("/proc/self/task").glob("*/children")
        for pid in path.read_text().split()
    }


def result(trial_id: str, status: Status = Status.SUCCEEDED) -> TrialResult:
    sample = EvaluationSample("p", 0, "The film", " was good", "eos", 3, 0.5, 1.25, 2.0, -3.0)
    return TrialResult(
        trial_id,
        f"sigmoid-beta{trial_id}",
        TrialSpec(loss_type="sigmoid", beta=0.1, learning_rate=1e-4),
        status,
        {"reward_mean": 1.5, "win_rate": None, "kl": math.nan},
        train_seconds=3.5,
        failure=Failure("deterministic", "loss is nan") if status is Status.FAILED else None,
        samples=[sample],
    )


UNTRAINED = TrialResult("untrained", "untrained", None, Status.SUCCEEDED, {"reward_mean": 0.25})


def sweep_of(results: list[TrialResult]) -> SweepResults:
    return SweepResults("demo", CONFIG, [], results, {})


def mirror_two_trials(mirror: WandbMirror) -> None:
    """One trial that succeeds and one that fails, then the sweep."""
    for trial_id in ("aaa", "bbb"):
        mirror.trial_started(trial_id, f"sigmoid-beta{trial_id}", {"beta": 0.1})
        for step in (1, 2):
            loss = math.nan if step == 2 else 0.6931
            mirror.log(trial_id, {"step": step, "loss": loss, "eval/kl": 0.5, "none": None})  # pyright: ignore[reportArgumentType]
    results = [UNTRAINED, result("aaa"), result("bbb", Status.FAILED)]
    for item in results:
        mirror.trial_finished(item)
    mirror.finish(sweep_of(results))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        r.getMessage()
        for r in caplog.records
        if r.name == tracking.__name__ and r.levelno >= logging.WARNING
    ]


# --- real runs, read back from W&B's own files ---------------------------------------------------


class Recorded:
    """What an offline run's transaction log holds (wandb_internal_pb2.Record)."""

    def __init__(self, folder: Path) -> None:
        from wandb.proto import wandb_internal_pb2 as pb

        self.folder = folder
        self.history: list[dict[str, object]] = []
        self.summary: dict[str, object] = {}
        self.x_axes: dict[str, str] = {}
        self.exit_code: int | None = None
        self.artifacts: dict[str, Any] = {}
        (file,) = folder.glob("*.wandb")
        for data in _chunks(file.read_bytes()):
            record = pb.Record.FromString(data)  # pyright: ignore[reportAttributeAccessIssue]
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config = {i.key: json.loads(i.value_json) for i in record.run.config.update}
            elif kind == "history":
                self.history.append(_items(record.history.item))
            elif kind == "summary":
                self.summary |= _items(record.summary.update)
            elif kind == "metric":
                self.x_axes[record.metric.name or record.metric.glob_name] = (
                    record.metric.step_metric
                )
            elif kind == "artifact":
                self.artifacts[record.artifact.name] = record.artifact
            elif kind == "exit":
                self.exit_code = record.exit.exit_code


def _items(items: object) -> dict[str, object]:
    return {
        "/".join(item.nested_key) or item.key: json.loads(item.value_json)
        for item in items  # pyright: ignore[reportGeneralTypeIssues]
    }


def _chunks(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB-style log: blocks of 32 KiB, each chunk with a 7-byte header."""
    block, position, record = 32768, 7, b""
    while position < len(data):
        if block - position % block < 7:
            position += block - position % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield record
            record = b""


def recorded(folder: Path) -> dict[str, Recorded]:
    """The offline runs below `folder`, by run id."""
    runs = [Recorded(path) for path in sorted(folder.glob("wandb/offline-run-*"))]
    return {run.run.run_id: run for run in runs}


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
    assert figure["layout"]["title"]["text"] == "Reward against drift"
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


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


# --- a W&B that misbehaves -----------------------------------------------------------------------


class Broken(Exception):
    """What the fake W&B raises."""


class FakeWandb(ModuleType):
    """A W&B whose `broken` call raises and whose `slow` call waits for `released`."""

    def __init__(self, broken: str = "", slow: str = "") -> None:
        super().__init__("wandb")
        self.broken, self.slow = broken, slow
        self.released = threading.Event()
        self.calls: list[str] = []
        self.modes: list[str] = []
        self.rows: list[dict[str, object]] = []
        self.Settings = type("Settings", (), {"model_fields": {}})

    def call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.slow:
            self.released.wait(10)
        if name == self.broken:
            raise Broken(f"{name} is broken\nand says so at length")

    def init(self, **arguments: str) -> SimpleNamespace:
        self.modes.append(arguments["mode"])
        self.call("init")
        return SimpleNamespace(
            define_metric=lambda *a, **k: self.call("define_metric"),
            log=self.log,
            summary=SimpleNamespace(update=lambda values: self.call("summary")),
            finish=lambda exit_code: self.call("finish"),
            log_artifact=lambda artifact: self.call("log_artifact"),
        )

    def log(self, row: dict[str, object]) -> None:
        self.rows.append(row)
        self.call("log")

    def Table(self, **arguments: object) -> str:
        self.call("Table")
        return "table"

    def Plotly(self, figure: object) -> str:
        self.call("Plotly")
        return "plot"

    def Artifact(self, name: str, type: str) -> object:
        self.call("Artifact")
        return SimpleNamespace(add_dir=lambda path: None)

    def setup(self, settings: object) -> None:
        self.call("setup")

    def teardown(self, exit_code: int = 0) -> None:
        self.call("teardown")


def fake_wandb(monkeypatch: pytest.MonkeyPatch, broken: str = "", slow: str = "") -> FakeWandb:
    fake = FakeWandb(broken, slow)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.mark.parametrize(
    "broken", ["setup", "init", "define_metric", "log", "summary", "finish", "teardown"]
)
def test_a_wandb_that_raises_leaves_the_caller_untouched(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = fake_wandb(monkeypatch, broken)
    mirror_two_trials(WandbMirror(WandbSpec(), "demo", CONFIG, tmp_path))
    assert fake.calls.count(broken) == 1
    assert fake.calls[-1] == "teardown"
    expected = [] if broken == "teardown" else [f"Broken: {broken} is broken and says so at length"]
    assert [message.split("(")[1].split(")")[0] for message in warnings(caplog)] == expected


def test_a_table_that_is_refused_costs_the_table_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = fake_wandb(monkeypatch, broken="Table")
    mirror_two_trials(WandbMirror(WandbSpec(), "demo", CONFIG, tmp_path))
    assert [fake.calls.count(name) for name in ("Table", "summary", "finish")] == [4, 3, 3]
    (warning,) = warnings(caplog)
    assert "refused a table of samples (Broken: Table is broken" in warning


def test_a_wandb_that_cannot_be_imported_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    mirror_two_trials(WandbMirror(WandbSpec(), "demo", CONFIG, tmp_path))
    assert len(warnings(caplog)) == 1


def test_a_broken_server_and_a_broken_disk_cost_one_warning_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    fake = fake_wandb(monkeypatch, broken="init")
    mirror_two_trials(WandbMirror(WandbSpec(), "demo", CONFIG, tmp_path))
    assert fake.modes == ["online", "offline"]
    first, second = warnings(caplog)
    assert "recording offline" in first
    assert "off from here on" in second


def test_a_server_that_is_lost_between_trials_keeps_the_open_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    fake = fake_wandb(monkeypatch)
    mirror = WandbMirror(WandbSpec(), "demo", CONFIG, tmp_path)
    mirror.trial_started("aaa", "a", {})
    mirror.log("aaa", {"step": 1})
    assert eventually(lambda: len(fake.rows) == 1)
    fake.broken = "init"
    mirror.trial_started("bbb", "b", {})
    assert eventually(lambda: len(warnings(caplog)) == 2)
    fake.broken = ""
    mirror.log("bbb", {"step": 1})
    mirror.log("aaa", {"step": 2})
    mirror.finish(sweep_of([]))
    assert [row.get("train/global_step") for row in fake.rows] == [1, 2]
    assert fake.modes == ["online", "online", "offline"]
    assert [warning.split(" ")[0] for warning in warnings(caplog)] == ["W&B", "b"]


def test_a_folder_that_cannot_be_made_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_wandb(monkeypatch)
    (tmp_path / "file").write_text("")
    mirror_two_trials(WandbMirror(WandbSpec(), "demo", CONFIG, tmp_path / "file" / "folder"))
    assert len(warnings(caplog)) == 1


def test_a_wandb_that_hangs_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "FINISH_TIMEOUT_S", 0.2)
    monkeypatch.setattr(tracking, "MAX_QUEUED", 10)
    fake = fake_wandb(monkeypatch, slow="init")
    mirror = WandbMirror(WandbSpec(), "demo", CONFIG, tmp_path)
    begin = time.monotonic()
    mirror.trial_started("aaa", "a", {})
    for step in range(1000):
        mirror.log("aaa", {"step": step})
    mirror.trial_finished(result("aaa"))
    mirror.finish(sweep_of([UNTRAINED]))
    assert time.monotonic() - begin < 2
    dropped, gave_up = warnings(caplog)
    assert "too slow for 99" in dropped
    assert "did not finish within" in gave_up
    fake.released.set()
    for thread in threading.enumerate():
        if thread.name == "wandb-mirror":
            thread.join(5)
    assert fake.calls[-1] == "teardown"


def test_an_upload_that_times_out_sends_the_rest_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setitem(globals(), "Broken", TimeoutError)
    fake = fake_wandb(monkeypatch, broken="finish")
    mirror_two_trials(WandbMirror(WandbSpec(), "demo", CONFIG, tmp_path))
    assert fake.modes == ["online", "online", "offline"]
    assert fake.calls.count("finish") == 3
    assert len(warnings(caplog)) == 1


# --- when it does nothing ------------------------------------------------------------------------


def test_disabled_starts_no_thread_and_imports_no_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    threads = threading.active_count()
    mirror = WandbMirror(WandbSpec(mode="disabled"), "demo", CONFIG, tmp_path)
    mirror.trial_started("aaa", "a", {})
    assert threading.active_count() == threads
    mirror_two_trials(mirror)
    assert caplog.records == []
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_in_which_no_trial_ran_leaves_earlier_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_wandb(monkeypatch)
    mirror = WandbMirror(WandbSpec(), "demo", CONFIG, tmp_path)
    mirror.finish(sweep_of([UNTRAINED, result("aaa")]))
    assert fake.calls == []


def test_calls_after_finish_and_for_unknown_trials_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_wandb(monkeypatch)
    mirror = WandbMirror(WandbSpec(), "demo", CONFIG, tmp_path)
    mirror.log("unknown", {"step": 1})
    mirror.trial_finished(result("unknown"))
    mirror.trial_started("aaa", "a", {})
    mirror.trial_started("aaa", "a", {})
    record = {"step": 1.0, "loss": 0.5}
    mirror.log("aaa", record)
    record.clear()
    mirror.finish(sweep_of([]))
    mirror.finish(sweep_of([]))
    mirror.trial_started("bbb", "b", {})
    assert fake.modes == ["offline", "offline"]
    assert fake.rows[0] == {"train/global_step": 1.0, "train/loss": 0.5}


# --- the mode ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "environ", "expected"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": KEY}, "online"),
        ("auto", {"WANDB_IDENTITY_TOKEN_FILE": "/token"}, "online"),
        ("auto", {"WANDB_MODE": "online"}, "offline"),
        ("auto", {"WANDB_MODE": "offline", "WANDB_API_KEY": KEY}, "offline"),
        ("auto", {"WANDB_MODE": "dryrun", "WANDB_API_KEY": KEY}, "offline"),
        ("auto", {"WANDB_MODE": "disabled", "WANDB_API_KEY": KEY}, "disabled"),
        ("online", {}, "offline"),
        ("online", {"WANDB_API_KEY": KEY}, "online"),
        ("online", {"WANDB_MODE": "disabled", "WANDB_API_KEY": KEY}, "online"),
        ("offline", {"WANDB_API_KEY": KEY}, "offline"),
        ("disabled", {"WANDB_API_KEY": KEY}, "disabled"),
    ],
)
def test_mode(mode: str, environ: dict[str, str], expected: str) -> None:
    spec = WandbSpec.model_validate({"mode": mode})
    assert wandb_mode(spec, {"HOME": "/nowhere", **environ}) == expected


def test_a_key_in_netrc_counts_for_its_own_server_only(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    (tmp_path / ".netrc").chmod(0o600)
    home = {"HOME": str(tmp_path)}
    assert wandb_mode(WandbSpec(), home) == "online"
    assert wandb_mode(WandbSpec(), {**home, "WANDB_BASE_URL": "https://wandb.me.com"}) == "offline"
    assert wandb_mode(WandbSpec(), {**home, "NETRC": "/nowhere"}) == "offline"
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.me.com\n")
    assert wandb_mode(WandbSpec(), {**home, "WANDB_CONFIG_DIR": str(tmp_path)}) == "offline"
    (tmp_path / ".netrc").write_text("not a netrc file {")
    assert wandb_mode(WandbSpec(), home) == "offline"


def test_online_without_a_key_says_that_it_records_offline(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    WandbMirror(WandbSpec(mode="online"), "demo", CONFIG, tmp_path)
    assert "no W&B API key" in warnings(caplog)[0]
