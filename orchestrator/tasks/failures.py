"""Why a trial failed, whether trying again can help, and how long to wait before that.

transient       a worker, a node or the storage failed: again, after a while
out_of_memory   again with a smaller batch, or with a larger share of the GPU
deterministic   it would fail in the same way again: not until it is asked for
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
"""How torch and safetensors say that a file could not be written; neither raises an OSError."""
BROKEN_DEVICE = ("CUDA error", "NCCL", "an illegal memory access", "device-side assert")
"""After these nothing works in the process any more that touches the GPU."""
SAME_AGAIN = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""Errors of the operating system that come back."""
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
"""What the operating system says of a disk, a mount or a network that is away (errno)."""
HTTP_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
"""Libraries whose errors without an answer say that there was none."""
ASK_LATER = {408, 425, 429}
"""Answers of a server, beside those from 500 on, that may be others after a while."""

AGAIN = "run the same command again; it goes on from the newest checkpoint"
MEND = (
    "mend the cause, then run again with --restart-errored (from scratch) or --resume-errored "
    "(from the newest checkpoint)"
)
LESS_MEMORY = (
    "it did not fit with one pair in a forward pass either: lower training.max_length, set "
    "training.gradient_checkpointing or training.lora, or give the trial more of a GPU "
    "(resources.gpus_per_trial)"
)
DIED = Failure(
    "transient",
    "its worker process died each time, without a word",
    advice="look whether the machine is short of memory (`dmesg` says what the kernel killed) or "
    f"a node was lost; then {AGAIN}",
)
HOST_MEMORY = (
    "the node runs out of memory: run fewer trials at once (a larger resources.cpus_per_worker), "
    f"or use a node with more; then {AGAIN}"
)


def classify(error: BaseException, where: str = "the storage") -> Failure:
    """What a trial's exception means for it; `where` is the folder it writes to."""
    from prefsweep.workers.memory import is_out_of_memory

    message = str(error) if isinstance(error, SweepError) else f"{type(error).__name__}: {error}"
    failure = Failure(
        "deterministic", message, "".join(traceback.format_exception(error)), advice=MEND
    )
    if isinstance(error, OutOfMemory) or is_out_of_memory(error):
        return replace(failure, kind="out_of_memory", advice=LESS_MEMORY)
    if _says(error, FULL_DISK.keys()):
        advice = f"make room where {where} is, or raise the limit that was met; then {AGAIN}"
        return replace(failure, kind="transient", advice=advice)
    if is_broken_device(error):
        advice = f"the GPU or its driver failed; if it does so again, look at `dmesg`. Else {AGAIN}"
        return replace(failure, kind="transient", advice=advice)
    if _is_storage(error):
        return replace(failure, kind="transient", advice=AGAIN)
    return failure


def worker_killed_for_memory(message: str) -> Failure:
    """A worker that Ray's memory monitor killed; `message` is Ray's."""
    first = message.strip().splitlines()[0] if message.strip() else "no reason given"
    return Failure(
        "out_of_memory", f"Ray killed its worker for memory: {first}", message, HOST_MEMORY
    )


def is_broken_device(error: BaseException) -> bool:
    """Whether the process is of no use to the next attempt either."""
    return isinstance(error, RuntimeError) and _says(error, BROKEN_DEVICE)


def delay_s(retries: RetriesSpec, num_failed: int, jitter: float | None = None) -> float:
    """Seconds to wait after `num_failed` failures in a row: doubled each time up to a cap, of which
    the upper half is random (`jitter`, 0 to 1), so that many trials do not come back at once."""
    jitter = random.random() if jitter is None else jitter
    longest = min(retries.max_delay_s, retries.base_delay_s * 2.0 ** min(num_failed - 1, 60))
    return longest * (0.5 + jitter / 2)


def pause(seconds: float, should_stop: Callable[[], bool]) -> None:
    """Wait, but no longer than until somebody asks to stop."""
    end_s = time.monotonic() + seconds
    while not should_stop() and (left_s := end_s - time.monotonic()) > 0:
        time.sleep(min(left_s, 0.5))


def _is_storage(error: BaseException) -> bool:
    """Whether a disk, a server or the network was out of reach: now, not for good.

    Libraries, and we, say in words of their own that a model cannot be loaded; what is behind tells
    why.
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
        return not isinstance(error, ValueError)  # an address that is none
    return isinstance(error, OSError) and error.errno in OUT_OF_REACH


def _is_refused(error: BaseException) -> bool:
    """Whether a server has answered that it does not give this, or nobody may be asked."""
    if type(error).__name__ == "OfflineModeIsEnabled":  # a ConnectionError by HF_HUB_OFFLINE
        return True
    status = _http_status(error)
    return status is not None and 400 <= status < 500 and status not in ASK_LATER


def _http_status(error: BaseException) -> int | None:
    """The status of the answer that an error of an HTTP client is about."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _says(error: BaseException, signs: Iterable[str]) -> bool:
    """Whether the error, or what it came from, says one of `signs`."""
    return any(sign in str(seen) for seen in _behind(error) for sign in signs)


def _behind(error: BaseException) -> Iterator[BaseException]:
    """The error, then what it came from: what it names as its cause, and where it only puts in
    other words what was being handled (as SweepErrors and OSErrors do), that."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        is_told_anew = isinstance(seen, SweepError | OSError)
        seen = seen.__cause__ or (seen.__context__ if is_told_anew else None)
