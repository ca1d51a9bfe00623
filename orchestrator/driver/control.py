"""Keeps a run's lease, and turns signals and `prefsweep stop` into a clean end.

The first Ctrl-C, SIGTERM or SIGHUP (a lost terminal) is a stop request, like `prefsweep stop`: the
run ends at its next safe point. The second ends it immediately. The signal handler only records
the signal; a thread does the rest.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from prefsweep.orchestrator.state.lease import HEARTBEAT_S, Lease
from prefsweep.orchestrator.state.stop import (
    clear_stop,
    polled_stop,
    request_stop,
    stop_requested,
)
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.errors import LeaseError, LostStoreError, StoreError, SweepError

log = logging.getLogger(__name__)

TICK_S = 0.2
"""Interval at which the thread passes a signal on to the user and the workers."""
SAME_SIGNAL_S = 0.3
"""Two signals within this time count as one: some tools signal a process and its group."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Control:
    """Holds the sweep's lease and handles signals for the length of a `with` block."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._lease = Lease(store, name)
        self._lost: SweepError | None = None
        self._asked = ""
        """Who requested the stop; "" while nobody has."""
        self._asked_at_s = 0.0
        self._announced, self._passed_on = False, False
        self._interruptible = False
        self.finishing = "finishing what runs now"
        """What a stop waits for, as shown to the user."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="run-control", daemon=True)
        self._handlers: dict[int, Any] = {}
        self._is_asked_elsewhere = polled_stop(store, name)

    def __enter__(self) -> "Control":
        self._lease.acquire()
        clear_stop(self._store, self._name)
        if threading.current_thread() is threading.main_thread():
            self._handlers = {n: signal.getsignal(n) or signal.SIG_DFL for n in SIGNALS}
            if self._handlers[signal.SIGHUP] == signal.SIG_IGN:  # nohup
                del self._handlers[signal.SIGHUP]
        self.handle_signals()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._lost is None:
            with suppress(StoreError):  # the lease expires, and the next run clears the request
                clear_stop(self._store, self._name)
                self._lease.release()

    def handle_signals(self) -> None:
        """Install the signal handlers; called again after Ray has installed its own."""
        for number in self._handlers:
            signal.signal(number, self._on_signal)

    @property
    def lost(self) -> SweepError | None:
        """The error once another driver took the sweep over or the store is gone; then this driver
        writes nothing more."""
        return self._lost

    def check(self) -> None:
        """A safe point: raises KeyboardInterrupt after a stop request, or the error in `lost`."""
        if self._lost is not None:
            raise self._lost
        if self._asked or stop_requested(self._store, self._name):
            raise KeyboardInterrupt

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Work in this process that a stop may interrupt at any point."""
        self.check()
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if number == signal.SIGHUP:
            _leave_lost_terminal()
        if self._asked and now_s - self._asked_at_s < SAME_SIGNAL_S:
            return
        ends = self._lost is not None or bool(self._asked) or self._interruptible
        self._asked, self._asked_at_s = signal.Signals(number).name, now_s
        if ends:
            for (
                again,
                handler,
            ) in self._handlers.items():  # the next one interrupts the clean-up
                signal.signal(again, handler)
            raise KeyboardInterrupt

    def _watch(self) -> None:
        beat_at_s = time.monotonic() + HEARTBEAT_S
        while not self._over.wait(TICK_S):
            try:
                if self._store.is_local:  # on object stores the heartbeat checks
                    self._lease.check_store()
                self._pass_on_request()
                if time.monotonic() >= beat_at_s:
                    beat_at_s = time.monotonic() + HEARTBEAT_S
                    self._lease.beat()
            except (LeaseError, LostStoreError) as error:
                self._lost = error
                self._interrupt()
                return
            except (StoreError, OSError) as error:  # retried in the next round
                log.warning("the lease cannot be renewed: %s", error)

    def _pass_on_request(self) -> None:
        """Record a stop request in the store, where workers see it, and log it for the user."""
        if not self._asked and self._is_asked_elsewhere():
            self._asked, self._passed_on = "prefsweep stop", True
        if self._asked and not self._announced:
            self._announced = True
            log.warning(
                "%s: stopping; %s (Ctrl-C from now on stops at once)", self._asked, self.finishing
            )
        if self._asked and not self._passed_on:
            request_stop(self._store, self._name)
            self._passed_on = True

    def _interrupt(self) -> None:
        """Interrupt the main thread."""
        if self._handlers:
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)


def _leave_lost_terminal() -> None:
    """Redirect output to /dev/null if its terminal is gone: writing to it would raise."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
