"""The trackers of a sweep behind one interface, and what all but W&B share.

A tracker gets the metrics that metrics.jsonl has. Its calls run on a daemon thread behind a queue,
and its first error switches it off with one warning: no tracker can fail, block or slow a trial.
"""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from prefsweep.orchestrator.text import one_line
from prefsweep.orchestrator.tracking.rows import history_row
from prefsweep.sweeps.records import SweepResults, TrialResult

logger = logging.getLogger(__name__)

FINISH_TIMEOUT_S = 60.0
"""Longest wait for a tracker at the end of a run."""
MAX_QUEUED = 20_000
"""Most calls that wait; beyond it, metric records are dropped."""

Folder = Callable[[], Path]
"""Fetches a folder; called on the tracker's thread."""


class Mirror(Protocol):
    """Where metrics go besides the store. No method raises; only `finish` waits."""

    def trial_started(self, trial_id: str, name: str, config: dict[str, object]) -> None:
        """A trial runs, for the first time or again."""
        ...

    def log(self, trial_id: str, record: Mapping[str, float | None]) -> None:
        """One record of a trial's metrics.jsonl; it has a "step". After `trial_started`, all
        records come from the first on."""
        ...

    def trial_finished(self, result: TrialResult, weights: Folder | None = None) -> None:
        """A trial has ended."""
        ...

    def finish(self, results: SweepResults, pairs: Folder | None = None) -> None:
        """The run of the sweep has ended."""
        ...


class Tracker(Protocol):
    """What a tracker's own library does; any method may raise."""

    title: str
    """Its name, in messages."""

    def start_trial(self, trial_id: str, name: str, config: Mapping[str, object]) -> None:
        """Open the run of a trial; what an earlier driver has logged to it is there once."""
        ...

    def log(self, trial_id: str, row: Mapping[str, float]) -> None:
        """Log metrics under the names of rows.py."""
        ...

    def finish_trial(self, result: TrialResult) -> None:
        """Log the final metrics and close the run."""
        ...

    def close(self) -> None:
        """Close what is still open, of interrupted trials."""
        ...


class QueuedMirror:
    """A Mirror that passes everything to a Tracker, on a thread of its own."""

    def __init__(self, make: Callable[[], Tracker], title: str) -> None:
        """`make` runs on the thread, where it may import a library that is missing."""
        self._make, self._title = make, title
        self._tracker: Tracker | None = None
        self._has_failed, self._num_dropped = False, 0
        self._jobs: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"{title}-mirror", daemon=True)

    def trial_started(self, trial_id: str, name: str, config: dict[str, object]) -> None:
        if self._thread.ident is None:
            self._thread.start()
        self._jobs.put(lambda tracker: tracker.start_trial(trial_id, name, config))

    def log(self, trial_id: str, record: Mapping[str, float | None]) -> None:
        if self._jobs.qsize() >= MAX_QUEUED:
            self._num_dropped += 1
            return
        row = history_row(record)
        self._jobs.put(lambda tracker: tracker.log(trial_id, row))

    def trial_finished(self, result: TrialResult, weights: Folder | None = None) -> None:
        self._jobs.put(lambda tracker: tracker.finish_trial(result))

    def finish(self, results: SweepResults, pairs: Folder | None = None) -> None:
        if self._thread.ident is None:
            return
        self._jobs.put(None)
        self._thread.join(FINISH_TIMEOUT_S)
        if self._num_dropped:
            message = "%s was too slow and missed %d metric records; metrics.jsonl has all of them"
            logger.warning(message, self._title, self._num_dropped)
        if self._thread.is_alive():
            message = "%s did not finish within %.0f s; metrics.jsonl has what it may miss"
            logger.warning(message, self._title, FINISH_TIMEOUT_S)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._attempt(job)
        self._attempt(lambda tracker: tracker.close())

    def _attempt(self, job: Callable[[Tracker], None]) -> None:
        if self._has_failed:
            return
        try:
            if self._tracker is None:
                self._tracker = self._make()
            job(self._tracker)
        except (Exception, SystemExit) as error:
            self._has_failed = True
            message = "%s failed (%s) and is off for this run; metrics.jsonl has every metric"
            logger.warning(message, self._title, f"{type(error).__name__}: {one_line(str(error))}")
