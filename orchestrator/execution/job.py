"""A submitted job: follows its log and waits for its end.

The connection to the dashboard may be lost, which does not affect the job. Requests are retried for
a while, and the log continues after the last line that was printed.
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
"""How long the dashboard may be unreachable while waiting for a job."""
FAILED = 1
"""Exit code for a job that ended without an exit code."""


@dataclass(frozen=True)
class Job:
    """A submitted job."""

    client: "JobSubmissionClient"
    job_id: str

    def exit_code(self) -> int:
        """Wait until the job ends; returns the exit code of its `prefsweep run`. Raises
        ClusterError."""
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
        # a driver that was ended by a signal has a negative code
        return info.driver_exit_code if info.driver_exit_code > 0 else FAILED

    def follow(self, write: Callable[[str], Any]) -> None:
        """Print the job's log until it ends, each line once. Raises ClusterError."""
        num_written, has_ended, lost_at = 0, False, -1

        async def pass_on() -> None:
            nonlocal num_written
            num_read = 0
            async for lines in self.client.tail_job_logs(self.job_id):  # from the first line
                new = lines[max(0, num_written - num_read) :]
                num_read += len(lines)
                if new:
                    write(new)
                    num_written += len(new)

        while True:
            try:
                return asyncio.run(pass_on())
            except _lost_connection() as error:
                if has_ended:  # only its log is lost, not its exit code
                    log.warning("the rest of the log of job %s is lost: %s", self.job_id, error)
                    return
                if lost_at < num_written:  # logged once, not at every retry
                    log.warning("the log of job %s broke off (%s); retrying", self.job_id, error)
                    lost_at = num_written
                has_ended = self._info().status.is_terminal()
                time.sleep(POLL_S)

    def _info(self) -> "JobDetails":
        """The job's status. If the dashboard is unreachable, this retries for PATIENCE_S."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self.client.get_job_info(self.job_id)
            except _lost_connection() as error:
                if time.monotonic() >= deadline_s:
                    raise ClusterError(
                        f"job {self.job_id}: for {PATIENCE_S:g} s its dashboard has not answered "
                        f"({error}); it may still be running, see `prefsweep status`"
                    ) from None
                time.sleep(POLL_S)


def _lost_connection() -> tuple[type[Exception], ...]:
    """The errors that Ray's client raises if the dashboard cannot be reached."""
    from aiohttp import ClientError
    from ray.exceptions import RayError

    return (OSError, RuntimeError, ClientError, RayError)  # requests' errors are OSErrors
