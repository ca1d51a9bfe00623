"""Shows a status that is polled: as a table on a terminal, as log lines elsewhere.

It never changes the sweep. If the status cannot be read, it says so and polls again.
"""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from prefsweep.orchestrator.display.events import changes
from prefsweep.orchestrator.display.status import render
from prefsweep.orchestrator.text import clean, encodable, short_duration
from prefsweep.sweeps.errors import SweepError
from prefsweep.sweeps.records import SweepStatus


def watch(read: Callable[[], SweepStatus], console: Console, interval_s: float = 1.0) -> None:
    """Show the status that `read` returns until KeyboardInterrupt."""
    before: SweepStatus | None = None
    try:
        with LiveView(read, console, interval_s):
            while True:
                if not console.is_terminal:
                    before = _print_changes(read, before, console)
                time.sleep(interval_s)
    except KeyboardInterrupt:
        return


def _print_changes(
    read: Callable[[], SweepStatus], before: SweepStatus | None, console: Console
) -> SweepStatus | None:
    """Print one line for each change since `before`; returns the new status."""
    try:
        now = read()
    except (SweepError, OSError) as error:
        logging.getLogger(__name__).warning("status could not be read: %s", error)
        return before
    for line in changes(before, now):
        text = encodable(f"{time.strftime('%H:%M:%S')} {line}", console.encoding)
        console.print(Text(text), soft_wrap=True)
    console.file.flush()
    return now


class LiveView:
    """Draws what `read` returns every `interval_s` seconds, while the `with` block runs.

    When the block ends, the last table stays on the screen and the cursor is restored. If `read`
    raises, the last table is shown with the error. Without a terminal nothing is drawn.
    """

    def __init__(
        self, read: Callable[[], SweepStatus], console: Console, interval_s: float = 1.0
    ) -> None:
        self._read = read
        self._interval_s = interval_s
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._last: RenderableType = ""
        self._read_at = time.monotonic()
        self._over = threading.Event()
        self._drawing = threading.Lock()
        self._thread = threading.Thread(target=self._poll, name="live-view", daemon=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is None:
            return
        try:
            self._over.set()
            self._thread.join(self._interval_s)
            self._draw()
        finally:
            self._live.stop()

    def _poll(self) -> None:
        while not self._over.is_set():
            self._draw(only_while_open=True)
            self._over.wait(self._interval_s)

    def _draw(self, only_while_open: bool = False) -> None:
        try:
            self._last, self._read_at = render(self._read()), time.monotonic()
            view = self._last
        except Exception as error:
            ago_s = time.monotonic() - self._read_at
            why, when = clean(str(error)), short_duration(ago_s)
            text = f"status could not be read ({why}); shown as of {when} ago"
            view = Group(self._last, Text(text, "yellow"))
        with self._drawing:
            if self._live is not None and not (only_while_open and self._over.is_set()):
                self._live.update(view, refresh=True)
