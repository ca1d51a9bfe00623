"""Retries transient storage errors and raises permanent ones immediately."""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from prefsweep.sweeps.errors import StoreError

log = logging.getLogger(__name__)

Result = TypeVar("Result")

RETRY_DELAYS_S = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Waits between attempts, in seconds; an error after the last one is raised."""

_FULL = "the disk is full (or a quota is): free some space, then run the same command again"
_NO_RIGHT = (
    "this user has no permission: grant it (a store shared by users needs one group, `chmod -R "
    "g+rwXs` and umask 002), or use another --storage"
)
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "the file is larger than is allowed here (ulimit -f): raise the limit, then run "
    "the same command again",
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EROFS: _NO_RIGHT,
}
"""Errors that retrying does not fix -> their remedy."""
FULL_DISK = {
    "No space left on device": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "File too large": errno.EFBIG,
    "os error 27": errno.EFBIG,
}
"""Text with which libraries report a full disk, quota or file-size limit -> its errno."""


def attempt(where: str, verb: str, call: Callable[[], Result]) -> Result:
    """Return `call()`; on an OSError, retry it after each of RETRY_DELAYS_S.

    Raises StoreError: "`where` cannot be `verb`: ..." with the remedy.
    """
    for delay_s in (*RETRY_DELAYS_S, None):
        try:
            return call()
        except OSError as error:
            remedy = remedy_for(error)
            if delay_s is None or remedy:
                raise _failure(where, verb, error, remedy) from error
            log.warning("%s cannot be %s (%s); retrying in %g s", where, verb, error, delay_s)
            time.sleep(delay_s)
    raise AssertionError("the last attempt returns or raises")


def remedy_for(error: BaseException) -> str:
    """The remedy for an error that retrying does not fix; "" for other errors."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        number = next((n for text, n in FULL_DISK.items() if text in str(error)), None)
    return _REMEDIES.get(number, "") if number is not None else ""


def _failure(where: str, verb: str, error: OSError, remedy: str) -> StoreError:
    tried = f"tried {len(RETRY_DELAYS_S) + 1} times; check the storage, then run the same command"
    return StoreError(f"{where} cannot be {verb}: {error}. {remedy or f'It was {tried} again'}")
