"""Whether a run may go on: its lease, requests to stop it, and the signals of its terminal.

The first Ctrl-C, SIGTERM or SIGHUP (a terminal that was lost) is a request like that of `prefsweep
stop`: the run ends at its next safe point. The second ends it at once. A handler only takes a note;
one thread does the rest.
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
"""How soon a signal is told to the user and to the workers: its handler takes no lock."""
SAME_SIGNAL_S = 0.3
"""Two signals closer than that are one: some tools send it to a process and to its group."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Control:
    """The driver's hold on a sweep for the length of a `with` block."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._lease = Lease(store, name)
        self._lost: SweepError | None = None
        self._asked = ""
        """Who asked the run to stop; "" while nobody has."""
        self._asked_at_s = 0.0
        self._told, self._passed_on = False, False
        self._nothing_to_lose = False
        self.finishing = "finishing what runs now"
        """What a stop waits for, said to the user."""
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
            with suppress(StoreError):  # the lease is stale soon, and a request is cleared at start
                clear_stop(self._store, self._name)
                self._lease.release()

    def handle_signals(self) -> None:
        """Take the signals; called again after Ray has set a handler of its own."""
        for number in self._handlers:
            signal.signal(number, self._on_signal)

    @property
    def lost(self) -> SweepError | None:
        """Set once another driver has taken the sweep over, or the store is gone: this one writes
        nothing more."""
        return self._lost

    def check(self) -> None:
        """A safe point: raises KeyboardInterrupt if a stop was asked for, or what `lost` is."""
        if self._lost is not None:
            raise self._lost
        if self._asked or stop_requested(self._store, self._name):
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A stretch of work in this process that a stop may end anywhere."""
        self.check()
        self._nothing_to_lose = True
        try:
            yield
        finally:
            self._nothing_to_lose = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if number == signal.SIGHUP:
            _leave_lost_terminal()
        if self._asked and now_s - self._asked_at_s < SAME_SIGNAL_S:
            return
        ends = self._lost is not None or bool(self._asked) or self._nothing_to_lose
        self._asked, self._asked_at_s = signal.Signals(number).name, now_s
        if ends:
            for again, handler in self._handlers.items():  # the next one also ends the cleaning up
                signal.signal(again, handler)
            raise KeyboardInterrupt

    def _watch(self) -> None:
        beat_at_s = time.monotonic() + HEARTBEAT_S
        while not self._over.wait(TICK_S):
            try:
                if self._store.is_local:  # elsewhere the heartbeat looks
                    self._lease.check_store()
                self._pass_on_request()
                if time.monotonic() >= beat_at_s:
                    beat_at_s = time.monotonic() + HEARTBEAT_S
                    self._lease.beat()
            except (LeaseError, LostStoreError) as error:
                self._lost = error
                self._interrupt()
                return
            except (StoreError, OSError) as error:  # the next round may be luckier
                log.warning("the lease cannot be renewed: %s", error)

    def _pass_on_request(self) -> None:
        """Whoever asked: the store knows, so that all workers hear, and the user is told."""
        if not self._asked and self._is_asked_elsewhere():
            self._asked, self._passed_on = "prefsweep stop", True
        if self._asked and not self._told:
            self._told = True
            log.warning(
                "%s: stopping; %s (Ctrl-C from now on stops at once)", self._asked, self.finishing
            )
        if self._asked and not self._passed_on:
            request_stop(self._store, self._name)
            self._passed_on = True

    def _interrupt(self) -> None:
        """End what the main thread does, wherever it is."""
        if self._handlers:
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)


def _leave_lost_terminal() -> None:
    """Send output nowhere if its terminal is gone: writing there would be an error."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
