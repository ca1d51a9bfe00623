"""tracking: nothing that W&B does reaches the sweep; and in which mode it is."""

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prefsweep.orchestrator.state.trial_record import TrialRecord
from prefsweep.orchestrator.tracking import wandb as tracking
from prefsweep.orchestrator.tracking.wandb import WandbMirror, wandb_mode
from prefsweep.orchestrator.tracking.watcher import TrialWatch
from prefsweep.sweeps.spec import WandbSpec
from tests.integration.small import small_sweep

from .fake_wandb import fake_wandb
from .wandb_runs import CONFIG, KEY, UNTRAINED, mirror_two_trials, result, sweep_of, warnings
from .wandb_runs import nothing_is_left as nothing_is_left
from .wandb_runs import own_home as own_home


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


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
    assert "is disabled for this run" in second


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
    assert time.monotonic() - begin < 8  # init alone would take 10
    dropped, gave_up = warnings(caplog)
    assert "too slow and missed 99" in dropped
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
    fake = fake_wandb(monkeypatch, broken="finish")
    fake.error = TimeoutError
    mirror_two_trials(WandbMirror(WandbSpec(), "demo", CONFIG, tmp_path))
    assert fake.modes == ["online", "online", "offline"]
    assert fake.calls.count("finish") == 3
    assert len(warnings(caplog)) == 1


def test_what_the_server_has_of_a_trial_from_an_earlier_driver_is_not_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_wandb(monkeypatch)
    fake.earlier = {"train/global_step": 2.0}
    mirror = WandbMirror(WandbSpec(), "demo", CONFIG, tmp_path)
    mirror.trial_started("aaa", "a", {})
    for step in (1, 2, 3, 4):
        mirror.log("aaa", {"step": step, "loss": 0.5})
    mirror.finish(sweep_of([]))
    assert [row["train/global_step"] for row in fake.rows if "train/loss" in row] == [3, 4]


def test_lines_that_a_trial_writes_again_after_a_checkpoint_are_mirrored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_wandb(monkeypatch)
    sweep = small_sweep(tmp_path, "tracking.wandb.mode=offline")
    trial = sweep.trials[0]
    log = TrialRecord(sweep, trial)
    with TrialWatch(sweep, [trial]) as watch:
        for steps in ((1, 2, 3, 4), (3, 4, 5)):  # dies after 4, goes on from step 2
            log.restart(steps[0] - 1, log.metrics, 5)
            for step in steps:
                log.report({"step": step, "loss": 0.5})
                watch._poll()
    assert [row["train/global_step"] for row in fake.rows if "train/loss" in row] == [1, 2, 3, 4, 5]


def test_an_interrupted_watch_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for W&B's server nor for a look at the storage that hangs."""
    looked, go = threading.Event(), threading.Event()

    def hang(watch: TrialWatch) -> None:
        looked.set()
        go.wait(60)

    def never(*_: object) -> None:
        raise AssertionError("nobody has a minute for W&B now")

    monkeypatch.setattr("prefsweep.orchestrator.tracking.watcher.INTERVAL_S", 0.0)
    monkeypatch.setattr(TrialWatch, "_poll", hang)
    monkeypatch.setattr(WandbMirror, "finish", never)
    sweep = small_sweep(tmp_path, "tracking.wandb.mode=offline")
    with pytest.raises(KeyboardInterrupt), TrialWatch(sweep, sweep.trials) as watch:
        assert looked.wait(60)
        raise KeyboardInterrupt
    assert watch._thread.is_alive()
    go.set()
    watch._thread.join()


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
