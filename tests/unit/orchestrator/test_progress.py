"""progress: what a sweep's status looks like, and that the terminal is left as it was."""

import contextlib
import io
import logging
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from prefsweep.orchestrator.display.live import LiveView
from prefsweep.orchestrator.display.status import render
from prefsweep.orchestrator.display.terminal import log_handler
from prefsweep.sweeps.records import Failure, StageStatus, Status, SweepStatus, TrialStatus

SHOW_CURSOR = "\x1b[?25h"
HIDE_CURSOR = "\x1b[?25l"


@pytest.fixture(autouse=True)
def a_plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def trial(name: str, status: Status, **changes: object) -> TrialStatus:
    values: dict[str, object] = {"step": 20, "max_steps": 40, "seconds": 12.0}
    values |= {"step_seconds": 0.6 if status is Status.RUNNING else None, **changes}
    return TrialStatus(name, name, status, f"trials/{name}", **values)  # pyright: ignore[reportArgumentType]


def sweep(*trials: TrialStatus) -> SweepStatus:
    stages = [
        StageStatus("prompts", Status.SUCCEEDED, "x", rows=160, seconds=0.25, num_done=1),
        StageStatus("generate", Status.RUNNING, "x", seconds=75, num_done=3, num_total=5),
    ]
    return SweepStatus("quickstart", stages, list(trials), elapsed_s=94, eta_s=4000)


def drawn(status: SweepStatus, width: int, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=width, force_terminal=False).print(render(status))
    file.flush()
    return file.buffer.getvalue().decode(encoding)  # pyright: ignore[reportAttributeAccessIssue]


METRICS: dict[str, float | None] = {
    "loss": 0.51234,
    "rewards/margins": 0.25,
    "grad_norm": 3.5,
    "reward_mean": 1.25,
    "kl": 12.5,
}


def test_a_wide_terminal_shows_every_column() -> None:
    text = drawn(sweep(trial("sigmoid-beta0.1", Status.RUNNING, metrics=METRICS)), 120)
    for word in ("1 running, 1m34s so far, 1h06m to go", "generate  3/5             1m15s"):
        assert word in text
    row = next(line for line in text.splitlines() if "sigmoid" in line)
    words = "▸ sigmoid-beta0.1 running 20/40 ━━━━ 0.5123 0.25 3.5 1.25 12.5 eta 12s"
    assert row.split() == words.split()


@pytest.mark.parametrize("width", [60, 80, 100])
def test_numbers_are_never_cut_and_lines_fit(width: int) -> None:
    name = "a-very-long-" * 5
    text = drawn(sweep(trial(name, Status.RUNNING, metrics=METRICS)), width)
    row = next(line for line in text.splitlines() if "a-very" in line)
    assert "…" in row
    assert all(word in row.split() for word in ("20/40", "0.5123", "12.5", "12s"))
    assert ("running" in row, "3.5" in row, "1.25" in row) == (width > 60, width > 80, width > 60)
    assert max(len(line) for line in text.splitlines()) <= width


def test_failures_are_written_out_below_the_table() -> None:
    failure = Failure("deterministic", "loss is nan at step 5", advice="lower learning_rate")
    failed = [trial(f"t{i}", Status.FAILED, failure=failure) for i in range(7)]
    text = drawn(sweep(*failed), 100)
    assert "✗ t0: loss is nan at step 5 (lower learning_rate)" in text
    assert "✗ t5:" not in text
    assert "and 2 more failures" in text


def on_a_screen(status: SweepStatus, height: int) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=100, height=height, force_terminal=True, color_system=None)
    console.print(render(status))
    return file.getvalue().splitlines()


def test_running_and_failed_trials_come_first_where_a_screen_has_no_room_for_all() -> None:
    trials = [trial(f"done{i}", Status.SUCCEEDED) for i in range(30)]
    trials += [trial("broken", Status.FAILED), trial("busy", Status.RUNNING)]
    lines = on_a_screen(sweep(*trials), 20)
    rows = [line.split()[1] for line in lines if line.startswith(("▸", "✓ d", "✗"))]
    assert rows[1:4] == ["busy", "broken", "done0"]
    assert "more" in lines[-1]
    few = drawn(sweep(*trials[-3:]), 100)
    assert few.index("done29") < few.index("broken") < few.index("busy")


def test_of_too_many_succeeded_trials_the_best_are_shown() -> None:
    rewards: list[float | None] = [None, *(float(i) for i in range(40))]
    trials = [
        trial(f"r{reward}", Status.SUCCEEDED, metrics={"reward_mean": reward}) for reward in rewards
    ]
    names = [line.split()[1] for line in on_a_screen(sweep(*trials), 24) if "✓ r" in line]
    assert names[:3] == ["r39.0", "r38.0", "r37.0"]


@pytest.mark.parametrize("height", [24, 50])
def test_three_hundred_trials_fit_the_screen_and_are_counted(height: int) -> None:
    failure = Failure("deterministic", "loss is nan at step 5")
    trials = [trial(f"done{i}", Status.SUCCEEDED) for i in range(150)]
    trials += [trial(f"bad{i}", Status.FAILED, failure=failure) for i in range(8)]
    trials += [trial(f"busy{i}", Status.RUNNING) for i in range(4)]
    trials += [trial(f"later{i}", Status.PENDING) for i in range(138)]
    done = [StageStatus(f"s{i}", Status.SUCCEEDED, "x", 5, 1.0, 1, 1) for i in range(9)]
    lines = on_a_screen(SweepStatus("many", done, trials, elapsed_s=10), height)
    assert len(lines) < height
    assert "4 running, 8 failed, 150 succeeded, 138 pending" in lines[0]
    assert all(any(f"busy{i} " in line for line in lines) for i in range(3))
    assert ("9 finished" in " ".join(lines)) == (height == 24)


def test_a_pipe_gets_all_trials() -> None:
    text = drawn(sweep(*(trial(f"t{i}", Status.PENDING) for i in range(300))), 100)
    assert all(f"t{i} " in text for i in range(300))


def test_a_running_stage_shows_its_rate_and_the_time_to_go() -> None:
    stage = StageStatus("scores", Status.RUNNING, "x", 960, None, 3, 5, 12.34, 75.0)
    line = drawn(SweepStatus("s", [stage], []), 100).splitlines()[-1]
    assert line.split() == ["▸", "scores", "3/5", "960", "12.3", "eta", "1m15s"]


def test_metrics_that_are_missing_stay_empty_and_nan_is_shown() -> None:
    text = drawn(sweep(trial("t", Status.FAILED, metrics={"loss": float("nan"), "kl": None})), 100)
    row = next(line for line in text.splitlines() if line.startswith("✗ t"))
    assert row.split() == ["✗", "t", "failed", "20/40", "nan", "12s"]


def test_names_are_neither_markup_nor_terminal_controls() -> None:
    evil = "[red]x[/red]\x1b[2J\x07\u202e\nend"
    failure = Failure("transient", evil)
    text = drawn(sweep(trial(evil, Status.FAILED, failure=failure)), 100)
    assert text.count(r"[red]x[/red]\x1b[2J\x07\u202e end") == 3
    assert not {"\x1b", "\x07", "\u202e"} & set(text)


def test_a_terminal_without_unicode_gets_ascii() -> None:
    text = drawn(sweep(trial("größe", Status.RUNNING)), 120, encoding="ascii")
    assert "> gr??e" in text


def test_an_empty_sweep_is_drawn() -> None:
    assert drawn(SweepStatus("s", [], []), 80).strip() == "s"


# --- log lines -----------------------------------------------------------------------------------


def log_lines(console: Console, *messages: str) -> None:
    logger = logging.Logger("test", logging.INFO)
    logger.addHandler(log_handler(console))
    for message in messages:
        logger.warning(message)


def test_piped_log_lines_are_plain_and_keep_their_length() -> None:
    file = io.StringIO()
    log_lines(Console(file=file, width=40), "[bold]hi[/bold]\x1b[31m :smile:", "x" * 200)
    first, second = file.getvalue().splitlines()
    assert first[8:] == r" [bold]hi[/bold]\x1b[31m :smile:"
    assert first[2] == first[5] == ":"
    assert second[9:] == "x" * 200


def test_log_lines_keep_the_lines_of_a_traceback() -> None:
    file = io.StringIO()
    log_lines(Console(file=file, width=80), "failed:\n  File x\n    y")
    assert file.getvalue()[8:] == " failed:\n  File x\n    y\n"


# --- the live view -------------------------------------------------------------------------------


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def test_nothing_is_drawn_where_there_is_no_terminal() -> None:
    file = io.StringIO()
    with LiveView(lambda: sweep(trial("t", Status.RUNNING)), Console(file=file), 0.01):
        time.sleep(0.05)
    assert file.getvalue() == ""
    assert not [thread for thread in threading.enumerate() if thread.name == "live-view"]


def test_the_live_view_survives_a_read_that_raises_and_leaves_the_last_table() -> None:
    file, reads = io.StringIO(), 0

    def read() -> SweepStatus:
        nonlocal reads
        reads += 1
        if reads % 2:
            raise OSError("the store is away")
        return sweep(trial("t", Status.RUNNING, step=reads))

    console = Console(file=file, force_terminal=True, width=100)
    with LiveView(read, console, 0.01):
        assert eventually(lambda: reads > 6)
    text = file.getvalue()
    assert "2/40" in text and "6/40" in text
    assert "status could not be read (the store is away)" in text
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)
    assert not [thread for thread in threading.enumerate() if thread.name == "live-view"]


def test_log_lines_go_above_the_live_view() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    with LiveView(lambda: sweep(trial("t", Status.RUNNING)), console, 0.01):
        assert eventually(lambda: "20/40" in file.getvalue())
        log_lines(console, "generate: 5 shards")
    tail = file.getvalue().split("generate: 5 shards")[1]
    assert "20/40" in tail


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_terminal_is_restored_when_the_block_raises(error: type[BaseException]) -> None:
    file, out, err = io.StringIO(), sys.stdout, sys.stderr
    console = Console(file=file, force_terminal=True, width=100)
    with (
        pytest.raises(error),
        LiveView(lambda: sweep(trial("t", Status.RUNNING)), console, 0.01),
    ):
        raise error
    assert file.getvalue().rindex(SHOW_CURSOR) > file.getvalue().rindex(HIDE_CURSOR)
    assert (sys.stdout, sys.stderr) == (out, err)


SCRIPT = """
import time
from rich.console import Console
from prefsweep.orchestrator.display.live import LiveView
from prefsweep.sweeps.records import Status, SweepStatus, TrialStatus
trial = TrialStatus("t", "my-trial", Status.RUNNING, "x", 3, 40)
with LiveView(lambda: SweepStatus("s", [], [trial]), Console(), 0.05):
    time.sleep(30)
"""


def test_ctrl_c_gives_a_real_terminal_back() -> None:
    main, terminal = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=terminal, stderr=subprocess.DEVNULL, env=environ
    )
    os.close(terminal)
    try:
        seen = b""
        while b"3/40" not in seen:
            seen += os.read(main, 4096)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # Linux reports the closed terminal as an error
            while chunk := os.read(main, 4096):
                seen += chunk
        assert seen.rindex(SHOW_CURSOR.encode()) > seen.rindex(HIDE_CURSOR.encode())
        assert process.wait(10) != 0
    finally:
        process.kill()
        process.wait()
        os.close(main)
