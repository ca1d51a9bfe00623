"""For the tests of tracking: two mirrored trials, and runs read back from W&B's own files."""

import json
import logging
import math
import os
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefsweep.orchestrator.tracking import wandb as tracking
from prefsweep.orchestrator.tracking.wandb import WandbMirror
from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.records import EvaluationSample, Failure, Status, SweepResults, TrialResult

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
