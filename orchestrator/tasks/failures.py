"""Classifies failures of trials: whether to retry, and how long to wait before that.

transient       a worker, a node or the storage failed: retry after a wait
out_of_memory   retry with a smaller batch, or with a larger share of the GPU
deterministic   it would fail in the same way again: retry only if the user requests it
"""

import errno
import random
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from prefsweep.orchestrator.store.retry import FULL_DISK
from prefsweep.sweeps.errors import OutOfMemory, StoreError, SweepError
from prefsweep.sweeps.records import Failure
from prefsweep.sweeps.runtime import RetriesSpec

WRITE_FAILED = ("PytorchStreamWriter failed", "unexpected pos", "I/O error", "file write failed")
"""Texts with which torch and safetensors report a failed write; neither raises an OSError."""
BROKEN_DEVICE = ("CUDA error", "NCCL", "an illegal memory access", "device-side assert")
"""Texts of errors after which the process cannot use the GPU any more."""
SAME_AGAIN = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""Errors of the operating system that retrying does not fix."""
OUT_OF_REACH = {
    errno.EIO,
    errno.ESTALE,
    errno.EREMOTEIO,
    errno.ENODEV,
    errno.ENOTCONN,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EAGAIN,
}
"""Error numbers (errno) of a disk, mount or network that is unavailable."""
HTTP_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
"""Libraries whose errors without a response mean that the server did not answer."""
ASK_LATER = {408, 425, 429}
"""Statuses of HTTP responses that may change on a retry, besides those from 500 on."""

AGAIN = "run the same command again; it resumes from the newest checkpoint"
MEND = (
    "fix the cause, then run again with --restart-errored (from scratch) or --resume-errored "
    "(from the newest checkpoint)"
)
LESS_MEMORY = (
    "even one pair per forward pass does not fit: lower training.max_length, set "
    "training.gradient_checkpointing or training.lora, or give the trial a larger share of a GPU "
    "(resources.gpus_per_trial)"
)
DIED = Failure(
    "transient",
    "its worker process died each time, without an error message",
    advice="check whether the machine ran out of memory (`dmesg` shows what the kernel killed) or "
    f"a node was lost; then {AGAIN}",
)
HOST_MEMORY = (
    "the node ran out of memory: run fewer trials at once (a larger resources.cpus_per_worker), "
    f"or use a node with more memory; then {AGAIN}"
)


def classify(error: BaseException, where: str = "the storage") -> Failure:
    """The failure of a trial for an exception; `where` is the folder it writes to."""
    from prefsweep.workers.memory import is_out_of_memory

    message = str(error) if isinstance(error, SweepError) else f"{type(error).__name__}: {error}"
    failure = Failure(
        "deterministic", message, "".join(traceback.format_exception(error)), advice=MEND
    )
    if isinstance(error, OutOfMemory) or is_out_of_memory(error):
        return replace(failure, kind="out_of_memory", advice=LESS_MEMORY)
    if _says(error, FULL_DISK.keys()):
        advice = f"free space on the disk of {where}, or raise its limit; then {AGAIN}"
        return replace(failure, kind="transient", advice=advice)
    if is_broken_device(error):
        advice = f"the GPU or its driver failed; if it fails again, check `dmesg`. Else {AGAIN}"
        return replace(failure, kind="transient", advice=advice)
    if _is_storage(error):
        return replace(failure, kind="transient", advice=AGAIN)
    return failure


def worker_killed_for_memory(message: str) -> Failure:
    """The failure for a worker that Ray's memory monitor killed; `message` is Ray's."""
    first = message.strip().splitlines()[0] if message.strip() else "no reason given"
    return Failure(
        "out_of_memory", f"Ray killed its worker to free memory: {first}", message, HOST_MEMORY
    )


def is_broken_device(error: BaseException) -> bool:
    """Whether the error means that this process cannot use its GPU any more."""
    return isinstance(error, RuntimeError) and _says(error, BROKEN_DEVICE)


def delay_s(retries: RetriesSpec, num_failed: int, jitter: float | None = None) -> float:
    """Seconds to wait after `num_failed` consecutive failures: doubled each time up to a maximum.
    The upper half is random (`jitter`, 0 to 1), so that many trials do not retry at once."""
    jitter = random.random() if jitter is None else jitter
    longest = min(retries.max_delay_s, retries.base_delay_s * 2.0 ** min(num_failed - 1, 60))
    return longest * (0.5 + jitter / 2)


def pause(seconds: float, should_stop: Callable[[], bool]) -> None:
    """Wait, or return early after a stop request."""
    end_s = time.monotonic() + seconds
    while not should_stop() and (left_s := end_s - time.monotonic()) > 0:
        time.sleep(min(left_s, 0.5))


def _is_storage(error: BaseException) -> bool:
    """Whether a disk, a server or the network is temporarily unavailable.

    The exceptions that an error was raised from are checked too, because libraries and prefsweep
    raise other errors when a model cannot be loaded.
    """
    if any(_is_refused(seen) for seen in _behind(error)):
        return False
    if any(_is_out_of_reach(seen) for seen in _behind(error)):
        return True
    if isinstance(error, OSError):
        return not isinstance(error, SAME_AGAIN)
    return _says(error, WRITE_FAILED) and not isinstance(error, SweepError)


def _is_out_of_reach(error: BaseException) -> bool:
    if isinstance(error, StoreError | ConnectionError | TimeoutError | socket.gaierror):
        return True
    if (status := _http_status(error)) is not None:
        return status in ASK_LATER or status >= 500
    if type(error).__module__.partition(".")[0] in HTTP_CLIENTS:
        return not isinstance(error, ValueError)  # an invalid address
    return isinstance(error, OSError) and error.errno in OUT_OF_REACH


def _is_refused(error: BaseException) -> bool:
    """Whether a server has refused the request, or requests are disabled."""
    if type(error).__name__ == "OfflineModeIsEnabled":  # a ConnectionError caused by HF_HUB_OFFLINE
        return True
    status = _http_status(error)
    return status is not None and 400 <= status < 500 and status not in ASK_LATER


def _http_status(error: BaseException) -> int | None:
    """The status of the response in an error of an HTTP client; None without one."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _says(error: BaseException, signs: Iterable[str]) -> bool:
    """Whether the error, or one that it was raised from, contains one of `signs`."""
    return any(sign in str(seen) for seen in _behind(error) for sign in signs)


def _behind(error: BaseException) -> Iterator[BaseException]:
    """The error, then the errors it was raised from: its cause, and for SweepErrors and OSErrors,
    which only rephrase an error, also the one that was being handled."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        is_told_anew = isinstance(seen, SweepError | OSError)
        seen = seen.__cause__ or (seen.__context__ if is_told_anew else None)
