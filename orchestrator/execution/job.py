"""A job that was submitted: its log as it comes, and its end.

The connection to the dashboard may be lost, which the job does not notice: what is asked is asked
again for a while, and a log goes on where it broke off.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefsweep.sweeps.errors import INTERRUPTED, ClusterError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

log = logging.getLogger(__name__)

POLL_S = 1.0
PATIENCE_S = 60.0
"""How long a dashboard may be out of reach while a job is waited for."""
FAILED = 1
"""Exit code for a job that ended without one of its own."""


@dataclass(frozen=True)
class Job:
    """A submitted job."""

    client: "JobSubmissionClient"
    job_id: str

    def exit_code(self) -> int:
        """Wait for the end; the exit code of `prefsweep run` there. Raises ClusterError."""
        from ray.job_submission import JobStatus

        info = self._info()
        while not info.status.is_terminal():
            time.sleep(POLL_S)
            info = self._info()
        if info.status == JobStatus.SUCCEEDED:
            return 0
        if info.status == JobStatus.STOPPED:
            return INTERRUPTED
        if info.driver_exit_code is None:
            raise ClusterError(f"job {self.job_id}: {info.message}")
        # a driver that a signal ended has a negative code
        return info.driver_exit_code if info.driver_exit_code > 0 else FAILED

    def follow(self, write: Callable[[str], Any]) -> None:
        """Pass on what the job prints until it ends, each line once. Raises ClusterError."""
        num_written, has_ended, lost_at = 0, False, -1

        async def pass_on() -> None:
            nonlocal num_written
            num_read = 0
            async for lines in self.client.tail_job_logs(self.job_id):  # always from the beginning
                new = lines[max(0, num_written - num_read) :]
                num_read += len(lines)
                if new:
                    write(new)
                    num_written += len(new)

        while True:
            try:
                return asyncio.run(pass_on())
            except _lost_connection() as error:
                if has_ended:  # its log cannot be had, its exit code can
                    log.warning("the rest of the log of job %s is lost: %s", self.job_id, error)
                    return
                if lost_at < num_written:  # told once, not at every try
                    log.warning("the log of job %s breaks off (%s); trying on", self.job_id, error)
                    lost_at = num_written
                has_ended = self._info().status.is_terminal()
                time.sleep(POLL_S)

    def _info(self) -> "JobDetails":
        """How the job stands; a dashboard that is out of reach is waited for, not for ever."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self.client.get_job_info(self.job_id)
            except _lost_connection() as error:
                if time.monotonic() >= deadline_s:
                    raise ClusterError(
                        f"job {self.job_id}: for {PATIENCE_S:g} s its dashboard has not answered "
                        f"({error}); it may go on, which `prefsweep status` tells"
                    ) from None
                time.sleep(POLL_S)


def _lost_connection() -> tuple[type[Exception], ...]:
    """What Ray's client raises where the dashboard, or the way to it, is away."""
    from aiohttp import ClientError
    from ray.exceptions import RayError

    return (OSError, RuntimeError, ClientError, RayError)  # requests' errors are OSErrors
