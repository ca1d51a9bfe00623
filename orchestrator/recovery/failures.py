"""Why a trial failed, whether trying again can help, and how long to wait before that.

transient       a worker, a node or the storage failed: again, after a while
out_of_memory   again with a smaller batch, or with a larger share of the GPU
deterministic   it would fail in the same way again: not until it is asked for
"""

import random
import time
import traceback
from collections.abc import Callable
from dataclasses import replace

from prefsweep.sweeps.errors import OutOfMemory, StoreError, SweepError
from prefsweep.sweeps.records import Failure
from prefsweep.sweeps.running import RetriesSpec

FULL_DISK = ("No space left on device", "Disk quota exceeded", "File too large", "os error 27")
"""What a full disk, quota or file-size limit is called, whichever library meets it."""
WRITE_FAILED = ("PytorchStreamWriter failed", "unexpected pos", "I/O error", "file write failed")
"""How torch and safetensors say that a file could not be written; neither raises an OSError."""
BROKEN_DEVICE = ("CUDA error", "NCCL", "an illegal memory access", "device-side assert")
"""After these nothing works in the process any more that touches the GPU."""
SAME_AGAIN = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""Errors of the operating system that come back."""

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
    if _says(error, FULL_DISK):
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
    if isinstance(error, StoreError | ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError):
        return not isinstance(error, SAME_AGAIN)
    return _says(error, WRITE_FAILED) and not isinstance(error, SweepError)


def _says(error: BaseException, signs: tuple[str, ...]) -> bool:
    """Whether the error, or what it came from, says one of `signs`."""
    seen: BaseException | None = error
    while seen is not None:
        if any(sign in str(seen) for sign in signs):
            return True
        seen = seen.__cause__
    return False
