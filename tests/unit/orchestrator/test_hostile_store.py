"""Stores that others can write to: odd files, sizes and values end no command and hang none."""

import io
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from prefsweep.orchestrator.display.terminal import Terminal, escaped, guard, log_handler
from prefsweep.orchestrator.results.results import read_results
from prefsweep.orchestrator.results.status import read_status
from prefsweep.orchestrator.state.lease import Lease, read_holder
from prefsweep.orchestrator.state.sweep import UNTRAINED, Sweep, open_sweep, spec_document
from prefsweep.orchestrator.state.trial_record import TrialRecord, read_failure
from prefsweep.orchestrator.store.store import Store, new_manifest
from prefsweep.orchestrator.tasks.trial_output import TrialOutput
from prefsweep.sweeps.errors import StoreError, UsageError
from prefsweep.sweeps.records import EvaluationSample, Failure, Status
from prefsweep.workers.tables import write_records
from tests.integration.small import small_sweep
from tests.unit.orchestrator.test_cli import prefsweep


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call` returns or raises; a failure where it takes longer."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(call())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, f"it hung for {seconds} s"
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(40 * 2**30)


def make_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


ODD = pytest.mark.parametrize("make_odd", [make_pipe, make_sparse, make_link_to_device])


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    sweep = small_sweep(tmp_path)
    sweep.store.write_json(sweep.store.sweep("small", "spec.json"), spec_document(sweep))
    return sweep


def place(sweep: Sweep, path: str) -> Path:
    """Where a file of the store lies, its folder made."""
    file = Path(sweep.store.display(path))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    return file


@ODD
def test_odd_files_in_the_place_of_records_count_as_damaged(
    sweep: Sweep, make_odd: Callable[[Path], None]
) -> None:
    store, trial_id = sweep.store, sweep.trials[0].trial_id
    records = [
        store.sweep("small", "lease.json"),
        store.sweep("small", "state.json"),
        store.trial(trial_id, "status.json"),
        store.trial(trial_id, "metrics.jsonl"),
        store.trial(trial_id, "weights", "manifest.json"),
        f"{sweep.path('pairs')}/manifest.json",
        f"{sweep.path('completions')}/shard-00000.parquet.json",
        f"{sweep.path('completions')}/shard-00000.parquet",
    ]
    for record in records:
        make_odd(place(sweep, record))
    status = within(20, lambda: read_status(sweep))
    assert status.trials[0].status == Status.PENDING and status.driver is None


@ODD
def test_an_odd_file_in_the_place_of_a_spec_is_told(
    sweep: Sweep, make_odd: Callable[[Path], None]
) -> None:
    make_odd(place(sweep, "sweeps/small/spec.json"))
    with pytest.raises(UsageError, match=r"spec\.json is damaged"):
        within(20, lambda: open_sweep("small", sweep.storage))


@ODD
def test_a_driver_takes_its_lease_whatever_lies_there(
    sweep: Sweep, make_odd: Callable[[Path], None]
) -> None:
    make_odd(place(sweep, "sweeps/small/lease.json"))
    within(20, Lease(sweep.store, "small").acquire)
    assert read_holder(sweep.store, "small") is not None


@pytest.mark.parametrize("make_odd", [make_pipe, make_link_to_device])
def test_an_odd_file_that_is_to_be_appended_to_neither_hangs_nor_is_followed(
    sweep: Sweep, make_odd: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefsweep.orchestrator.store.retry.RETRY_DELAYS_S", ())
    make_odd(place(sweep, "sweeps/small/lease.json.lock"))
    with pytest.raises(StoreError):
        within(20, Lease(sweep.store, "small").acquire)
    make_odd(place(sweep, "trials/a/metrics.jsonl"))
    with pytest.raises(StoreError):
        within(20, lambda: sweep.store.append("trials/a/metrics.jsonl", b"{}\n"))


def test_nothing_is_appended_through_a_link_in_the_store(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes to the store would choose a file of the user: ~/.bashrc, authorized_keys."""
    monkeypatch.setattr("prefsweep.orchestrator.store.retry.RETRY_DELAYS_S", ())
    precious, trial = tmp_path / "bashrc", sweep.trials[0]
    precious.write_text("mine\n")
    for name in ("metrics.jsonl", "trial.log"):
        place(sweep, sweep.store.trial(trial.trial_id, name)).symlink_to(precious)
    with TrialOutput(sweep, trial, prints=False) as output:
        output.note("a line of the log")
    with pytest.raises(StoreError):
        sweep.store.append(sweep.store.trial(trial.trial_id, "metrics.jsonl"), b"{}\n")
    log = TrialRecord(sweep, trial)
    log.report({"step": 1.0, "loss": 0.5})  # replaces what is not its own
    assert precious.read_text() == "mine\n"


def test_an_object_is_read_no_further_than_a_record_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prefsweep.orchestrator.store.store.MAX_RECORD_BYTES", 10)
    store = Store("memory://hostile")
    store.write("sweeps/small/lease.json", b"0123456789")
    assert store.read_record("sweeps/small/lease.json") == b"0123456789"
    store.write("sweeps/small/lease.json", b"0123456789a")
    assert store.read_record("sweeps/small/lease.json") == b""
    assert store.read("sweeps/small/lease.json") == b"0123456789a"


# --- control characters ---------------------------------------------------------------------------

EVIL = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202e"
"""Sets the title, clears the screen, overwrites the line, in C1 codes, and turns the text round."""


def assert_harmless(said: str) -> None:
    assert said == escaped(said), "nothing to write out is left"
    assert "\\x1b]0;owned" in said, "it is shown"


def write_evil_lease(store: Store) -> None:
    Lease(store, "small").acquire()
    path = store.sweep("small", "lease.json")
    store.write_json(path, store.read_json(path) | {"host": EVIL, "machine": "elsewhere"})


@pytest.mark.parametrize(
    "words",
    [
        ("status", "small"),
        ("status", EVIL.replace("/", "")),
        ("stop", "small", "--no-wait"),
        ("stop", f"no{EVIL}"),
        ("resume", f"no{EVIL}"),
        ("report", f"no{EVIL}"),
        ("gc",),
        ("plan", f"no{EVIL}.yaml"),
        ("export", "small", EVIL, "--to", "out"),
    ],
    ids=lambda words: words[0],
)
def test_no_command_sends_control_characters_to_the_terminal(
    sweep: Sweep,
    tmp_path: Path,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, trial = sweep.store, sweep.trials[0]
    write_evil_lease(store)
    failure = {"kind": "deterministic", "message": EVIL}
    document = {"status": "failed", "failure": failure, "started": 1.0, "updated": 2.0}
    store.write_json(store.trial(trial.trial_id, "status.json"), document)
    (tmp_path / "aside").mkdir()
    (tmp_path / "aside" / f"trials~{EVIL}.0123abcd").touch()
    storage = () if words[0] == "plan" else ("--storage", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    prefsweep(monkeypatch, *words, *storage)
    said = capsys.readouterr()
    assert_harmless(said.out + said.err)


def test_the_view_the_log_and_uncaught_errors_write_control_characters_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = io.StringIO()
    terminal = Terminal(file=screen, force_terminal=True, width=200, height=50)
    terminal.print(Text(f"a{EVIL}", "red"))
    drawn = screen.getvalue()
    assert "\\x1b]0;owned" in drawn and "\x1b]0" not in drawn and "\x1b[2J" not in drawn
    assert drawn.startswith("\x1b[31m"), "its own colours stay"
    log_handler(Terminal(file=screen, width=200)).emit(
        logging.LogRecord("prefsweep", logging.WARNING, "", 0, EVIL, None, None)
    )
    assert_harmless(screen.getvalue().removeprefix(drawn))
    last, hook = logging.lastResort, sys.excepthook
    try:
        guard()
        monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest listens there
        logging.getLogger("nobody.listens").warning(EVIL)
        sys.excepthook(ValueError, ValueError(EVIL), None)
    finally:
        logging.lastResort, sys.excepthook = last, hook
    assert_harmless(capsys.readouterr().err)


# --- values, missing files, modes -----------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"message": 5}, {"message": None}, {"kind": "odd"}, {"traceback": []}, {"advice": {}}],
    ids=str,
)
def test_a_failure_that_is_not_made_of_texts_is_none(wrong: dict[str, object]) -> None:
    whole = {"kind": "transient", "message": "why"}
    assert read_failure(whole) == Failure("transient", "why")
    assert read_failure(whole | wrong) is None


def write_evaluation(sweep: Sweep, metrics: object, *, samples: bool) -> None:
    """The untrained policy's; its manifest is true."""
    with sweep.store.staging() as folder:
        (folder / "metrics.json").write_text(json.dumps(metrics))
        if samples:
            write_records([], EvaluationSample, folder / "samples.parquet")
        path = sweep.evaluation_path(UNTRAINED)
        own = sweep.fingerprints.untrained
        sweep.store.publish(path, folder, new_manifest(own, 0, 0.0))


def test_measurements_that_are_no_numbers_are_left_out(sweep: Sweep) -> None:
    write_evaluation(sweep, {"kl": 0.5, "entropy": "much", "win_rate": [1]}, samples=True)
    untrained, *_ = read_results(sweep).results
    assert untrained.metrics == {"kl": 0.5}


def test_without_its_samples_an_evaluation_is_set_aside_with_a_message(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_evaluation(sweep, {}, samples=False)
    assert prefsweep(monkeypatch, "report", "small", "--storage", sweep.storage) == 1
    err = " ".join(capsys.readouterr().err.split())
    assert "samples.parquet cannot be read" in err and "run the sweep again" in err
    assert sweep.store.manifest(sweep.evaluation_path(UNTRAINED)) is None


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_published_files_have_the_mode_that_the_umask_says(
    sweep: Sweep, umask: int, mode: int
) -> None:
    """Some libraries write weights that only their owner can read, in a shared store too."""
    before = os.umask(umask)
    try:
        with sweep.store.staging() as folder:
            (folder / "sub").mkdir()
            for name in ("model.safetensors", "sub/config.json"):
                (folder / name).write_bytes(b"x")
                (folder / name).chmod(0o600)
            sweep.store.publish("trials/a/weights", folder, new_manifest("f", 1, 0.0))
    finally:
        os.umask(before)
    published = Path(sweep.store.display("trials/a/weights"))
    modes = {file.name: file.stat().st_mode & 0o777 for file in published.rglob("*.*")}
    names = ("model.safetensors", "config.json", "manifest.json")
    assert modes == dict.fromkeys(names, mode)
