"""`submit`: what a job is sent with, what is refused before, and how it is followed."""

import json
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import ClientConnectionError
from ray.job_submission import JobStatus

from prefsweep.orchestrator.commands import cli
from prefsweep.orchestrator.execution import job, jobs

OTHERS = ["--storage", "s3://bucket/runs", "--address", "http://head:8265"]


class Dashboard:
    """Takes jobs, and keeps the words they are started with and the spec in their folder."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.spec: dict[str, Any] = {}
        self.settings: dict[str, str] = {}
        self.answers: list[Any] = []
        """What it says of the job, one after the other, the last for ever; errors are raised."""

    def get_job_info(self, job_id: str) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        yield "trial 1 of 2\n"
        raise RuntimeError("WebSocket connection closed unexpectedly")

    def submit_job(
        self, *, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]
    ) -> str:
        self.words = shlex.split(entrypoint)
        self.spec = json.loads((Path(runtime_env["working_dir"]) / "sweep.json").read_text())
        self.settings = runtime_env["env_vars"]
        return f"job of {metadata['prefsweep']}"


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Dashboard:
    here = Dashboard()
    monkeypatch.setattr(jobs, "_client", lambda address: here)
    return here


def submit(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["prefsweep", "submit", "quickstart", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.mark.parametrize("flag", ["--restart-errored", "--resume-errored", "--skip-errored"])
def test_the_job_is_the_same_command_with_the_spec_as_resolved_here(
    flag: str, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a secret")
    assert submit(monkeypatch, "name=mine", *OTHERS, "--until", "trials", flag) == 0
    module, *words = dashboard.words[2:]
    assert module == "prefsweep.orchestrator.commands.cli"
    assert words == ["run", "sweep.json", *OTHERS[:2], "--until", "trials", flag]
    assert dashboard.spec["name"] == "mine"
    assert "a secret" not in dashboard.settings.values()


def test_failed_trials_are_retried_as_run_does_where_no_flag_is_given(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert submit(monkeypatch, *OTHERS) == 0
    assert dashboard.words[-2:] == ["--until", "report"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*OTHERS, "--resume-errored", "--skip-errored"], "exclude each other"),
        ([*OTHERS, "--until", "nowhere"], "'nowhere' is not one of 'policy'"),
        (["--storage", "./runs", *OTHERS[2:]], "--storage ./runs is a relative path"),
        ([*OTHERS[:3], "head:6379"], "--address head:6379 is not a URL"),
        ([*OTHERS[:3], "auto"], "http://HEAD:8265"),
        (
            [*OTHERS, "reward={type: callable, function: 'nope.mod:f'}"],
            "reward.function=nope.mod:f cannot be imported",
        ),
        (
            [*OTHERS, "prompts={type: file, path: promts.jsonl}"],
            "prompts.path=promts.jsonl: there is no such file or folder",
        ),
    ],
)
def test_what_cannot_work_there_is_refused_before_anything_is_sent(
    words: list[str],
    said: str,
    dashboard: Dashboard,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert submit(monkeypatch, *words) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not dashboard.words


def info(status: str, code: int | None) -> Any:
    return SimpleNamespace(status=JobStatus[status], driver_exit_code=code, message="it was so")


@pytest.mark.parametrize(
    ("status", "driver_code", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", -9, 1),
        ("STOPPED", 0, 130),
    ],
)
def test_a_follower_ends_with_the_code_of_the_job_though_the_connection_breaks(
    status: str,
    driver_code: int,
    code: int,
    dashboard: Dashboard,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(job, "POLL_S", 0.0)
    away = ConnectionError("no route to the head")
    dashboard.answers = [info("RUNNING", None), away, away, info(status, driver_code)]
    assert submit(monkeypatch, *OTHERS, "--follow") == code
    assert "trial 1 of 2" in capsys.readouterr().out


def test_a_dashboard_that_stays_away_is_told_with_what_tells_more(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "POLL_S", 0.0)
    monkeypatch.setattr(job, "PATIENCE_S", 0.1)
    dashboard.answers = [info("RUNNING", None), ConnectionError("no route to the head")]
    assert submit(monkeypatch, *OTHERS, "--follow") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "no route to the head" in said and "see `prefsweep status`" in said
    assert said.count("`prefsweep stop quickstart --storage s3://bucket/runs`") == 2


def test_the_ways_to_look_after_it_can_be_pasted(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = "s3://bucket/runs?endpoint_override=s3:9000&scheme=http"
    words = ["--storage", storage, *OTHERS[2:]]
    assert submit(monkeypatch, *words) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"`prefsweep status quickstart --storage '{storage}'`" in said


def test_a_full_path_that_is_not_here_is_warned_of(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = "prompts={type: file, path: /shared/prompts.jsonl}"
    assert submit(monkeypatch, *OTHERS, prompts) == 0
    assert "prompts.path=/shared/prompts.jsonl is not on this machine" in caplog.text
    assert dashboard.spec["prompts"]["path"] == "/shared/prompts.jsonl"


# --- a connection that is lost -------------------------------------------------------------------


class Flaky:
    """A dashboard whose connection is lost after each part of the log."""

    def __init__(self, *parts: str) -> None:
        self.parts, self.num_tails = parts, 0

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        self.num_tails += 1
        yield "".join(self.parts[: self.num_tails])
        if self.num_tails < len(self.parts):
            raise ClientConnectionError("the tunnel is gone")

    def get_job_info(self, job_id: str) -> Any:
        has_ended = self.num_tails >= len(self.parts)
        return info("FAILED", 1) if has_ended else info("RUNNING", None)


def test_a_log_goes_on_where_it_broke_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "POLL_S", 0.0)
    dashboard, written = Flaky("one\ntw", "o\n", "three\n"), list[str]()
    followed = job.Job(cast("Any", dashboard), "mine")
    followed.follow(written.append)
    assert "".join(written) == "one\ntwo\nthree\n"
    assert followed.exit_code() == 1


def test_the_job_knows_what_was_typed(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert submit(monkeypatch, "seeds=[0, 1]", *OTHERS) == 0
    assert dashboard.settings["PREFSWEEP_COMMAND"] == "prefsweep submit quickstart 'seeds=[0, 1]'"
