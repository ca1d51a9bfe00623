"""The one place where text leaves the process for a terminal or a pipe.

Names, messages and values come from stores, data and workers that others may write to. They are
shown and never obeyed: control characters, which move the cursor, hide text or change the terminal,
are written out (`\\x1b`). Nothing else in this package prints.
"""

import logging
import sys
import traceback
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from prefsweep.orchestrator.text import encodable, escaped


class Terminal(Console):
    """A console whose own colours and cursor movements are the only ones that reach the screen."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """What is shown, piece by piece."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(escaped(text), style)


console = Terminal()
errors = Terminal(stderr=True)


def say(text: object) -> None:
    """Print a line."""
    print(escaped(str(text)))


def write(lines: str) -> None:
    """Write the lines of a log as they come."""
    sys.stdout.write(escaped(lines))
    sys.stdout.flush()


def log_handler(console: Console) -> logging.Handler:
    """A handler that prints `HH:MM:SS message`, above the live view where there is one."""
    handler = _LineHandler(console)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    return handler


class _LineHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = encodable(escaped(self.format(record)), self._console.encoding)
            style = "yellow" if record.levelno >= logging.WARNING else ""
            self._console.print(Text(text, style), soft_wrap=True)
        except Exception:
            self.handleError(record)


def guard() -> None:
    """Send what Python itself would print there, too: warnings in the log, uncaught errors."""
    handler = _LineHandler(errors)
    handler.setLevel(logging.WARNING)
    logging.lastResort = handler  # pyright: ignore[reportAttributeAccessIssue]
    sys.excepthook = _print_uncaught


def _print_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    lines = traceback.format_exception(kind, error, trace)
    errors.print(Text("".join(lines)), soft_wrap=True, end="")
