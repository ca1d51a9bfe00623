"""Writes the log and output of a trial to trial.log in the trial's folder, up to a maximum size.

In a worker, this is all output of the thread that runs the trial. In the driver's process (without
Ray), it is only the log, because prints are already on the user's terminal.
"""

import io
import logging
import sys
import threading
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TextIO

from prefsweep.orchestrator.state.sweep import Sweep, Trial
from prefsweep.orchestrator.store.files import open_to_append
from prefsweep.orchestrator.store.scratch import scratch_folder, scratch_home
from prefsweep.sweeps.errors import StoreError

LOG_NAME = "trial.log"
MAX_BYTES = 512 * 1024
"""Maximum size of trial.log and of trial.log.1, its older part."""
LISTENED_TO = ("prefsweep", "transformers", "trl", "py.warnings")
"""Loggers whose records are written; transformers and trl do not propagate theirs to the root."""


class TrialOutput:
    """Collects the output of a `with` block."""

    def __init__(self, sweep: Sweep, trial: Trial, *, prints: bool) -> None:
        self._store, self._prints = sweep.store, prints
        self._stored = sweep.store.trial(trial.trial_id, LOG_NAME)
        self.path = sweep.store.display(self._stored)
        """Path of the log, for messages."""
        self._exit = ExitStack()
        self._file = Path(self.path)
        self._handler: logging.Handler | None = None

    def __enter__(self) -> "TrialOutput":
        if not self._store.is_local:
            folder = self._exit.enter_context(scratch_folder(scratch_home()))
            self._file = folder / LOG_NAME
            with suppress(StoreError):
                self._file.write_bytes(self._store.read(self._stored) or b"")
        self._handler = _handler(self._file)
        for name in LISTENED_TO:
            logging.getLogger(name).addHandler(self._handler)
        if self._prints:
            self._exit.enter_context(redirect_stdout(_Tee(sys.stdout, self.note)))
            self._exit.enter_context(redirect_stderr(_Tee(sys.stderr, self.note)))
        return self

    def __exit__(self, *error: object) -> None:
        assert self._handler is not None
        for name in LISTENED_TO:
            logging.getLogger(name).removeHandler(self._handler)
        self._handler.close()
        self.upload()
        self._exit.close()

    def note(self, text: str) -> None:
        """Add a line."""
        assert self._handler is not None
        self._handler.handle(logging.LogRecord("", logging.INFO, "", 0, text, None, None))

    def upload(self) -> None:
        """Update the copy in an object store; a failure to write the log does not end the trial."""
        if not self._store.is_local and self._file.exists():
            with suppress(StoreError, OSError):
                self._store.write(self._stored, self._file.read_bytes())


def _handler(file: Path) -> logging.Handler:
    handler: logging.Handler
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = _Quiet(file, maxBytes=MAX_BYTES, backupCount=1, encoding="utf-8", delay=True)
    except OSError:
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    return handler


class _Quiet(RotatingFileHandler):
    """A log handler that ignores write errors (for example a full disk)."""

    def _open(self) -> Any:
        """Open the log, but not through a link or as a named pipe, which another user of the store
        may have created."""
        return open(self.baseFilename, self.mode, encoding="utf-8", opener=open_to_append)

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _Tee(io.TextIOBase):
    """A stream that forwards its text, and keeps the lines that its creating thread writes."""

    def __init__(self, stream: TextIO, keep: Any) -> None:
        self._stream, self._keep, self._partial = stream, keep, ""
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() == self._thread:
            *lines, self._partial = (self._partial + text).split("\n")
            self._partial = self._partial[-10_000:]
            for line in lines:
                self._keep(line)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return False
