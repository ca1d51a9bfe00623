"""What an exception means for a trial, and when it is tried again."""

import errno
import resource
import signal
import socket
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import requests
import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  httpx's or httpx2's, by version
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from prefsweep.orchestrator.tasks.failures import (
    classify,
    delay_s,
    is_broken_device,
    pause,
    worker_killed_for_memory,
)
from prefsweep.sweeps.errors import DataError, ModelError, OutOfMemory, StoreError, TrialError
from prefsweep.sweeps.runtime import RetriesSpec
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_policy

HTTP = import_module(HTTPError.__module__.partition(".")[0])
"""The HTTP library of the hub's client."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (OutOfMemory("step 3 does not fit"), "out_of_memory"),
        (StoreError("it cannot be read"), "transient"),
        (ConnectionResetError("reset by peer"), "transient"),
        (TimeoutError("no answer"), "transient"),
        (OSError(5, "Input/output error"), "transient"),
        (OSError(28, "No space left on device"), "transient"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "transient"),
        (TrialError("the loss is nan at step 3"), "deterministic"),
        (DataError("no training pair is left"), "deterministic"),
        (ValueError("bad"), "deterministic"),
        (FileNotFoundError(2, "No such file"), "deterministic"),
        (RuntimeError("shapes do not fit"), "deterministic"),
        (KeyError("reward"), "deterministic"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_exception_is_transient_out_of_memory_or_deterministic(
    error: Exception, kind: str
) -> None:
    failure = classify(error)
    assert failure.kind == kind
    assert failure.advice and "\n" not in failure.advice
    assert str(error) in failure.traceback


def answered(status: int, error_type: type[HfHubHTTPError] = HfHubHTTPError) -> Exception:
    """What the hub's client raises for such an answer."""
    request = HTTP.Request("HEAD", "https://hub.org/owner/name")
    return error_type(f"{status}", response=HTTP.Response(status, request=request))


def not_in_the_cache() -> Exception:
    """What the hub's client raises for a file that it neither gets nor has, whatever the reason."""
    return LocalEntryNotFoundError("we cannot find the requested files in the local cache")


@pytest.mark.parametrize(
    ("causes", "kind"),
    [
        ([not_in_the_cache(), HTTP.ConnectError("no route")], "transient"),
        ([not_in_the_cache(), HTTP.ReadTimeout("timed out")], "transient"),
        ([not_in_the_cache(), requests.ConnectionError("no route")], "transient"),
        ([not_in_the_cache(), answered(503)], "transient"),
        ([not_in_the_cache(), answered(429)], "transient"),
        ([socket.gaierror(-2, "Name or service not known")], "transient"),
        ([ConnectionResetError(104, "reset by peer")], "transient"),
        ([TimeoutError("no answer")], "transient"),
        ([OSError(errno.ESTALE, "Stale file handle")], "transient"),
        ([OSError(errno.EIO, "Input/output error")], "transient"),
        ([StoreError("it cannot be read")], "transient"),
        ([not_in_the_cache()], "deterministic"),
        ([not_in_the_cache(), OfflineModeIsEnabled("HF_HUB_OFFLINE=1")], "deterministic"),
        ([answered(404, RepositoryNotFoundError)], "deterministic"),
        ([answered(403)], "deterministic"),
        ([FileNotFoundError(2, "No such file")], "deterministic"),
        ([PermissionError(13, "Permission denied")], "deterministic"),
        ([OSError("there is no file named model.safetensors")], "deterministic"),
        ([ValueError("bad config"), ConnectionError("while handling")], "deterministic"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[-1]!r:.40}",
)
@pytest.mark.parametrize("is_told", [True, False], ids=["from error", "from None"])
def test_a_model_that_cannot_be_loaded_is_judged_by_what_is_behind(
    causes: list[Exception], kind: str, is_told: bool
) -> None:
    """As transformers and we put it: our error, of one of transformers', of what was the matter."""
    first = error = ModelError("policy owner/name cannot be loaded")
    for seen in causes:
        seen.__cause__ = seen.__context__ = None
    for cause in (OSError("We couldn't load the files"), *causes):
        if isinstance(error, ValueError) or not is_told:
            error.__context__ = cause
            error.__suppress_context__ = not is_told
        else:
            error.__cause__ = cause
        error = cause
    assert classify(first).kind == kind


@pytest.mark.parametrize(("is_offline", "kind"), [(False, "transient"), (True, "deterministic")])
def test_what_the_libraries_make_of_a_hub_that_is_away_is_transient_unless_it_is_switched_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_offline: bool, kind: str
) -> None:
    with socket.socket() as nobody:  # bound, and does not listen
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's attempts
        with pytest.raises(ModelError) as raised:
            load_policy(ModelSource("nobody/has-this-model"))
    assert classify(raised.value).kind == kind


def test_a_full_disk_is_told_with_the_folder_to_make_room_in() -> None:
    wrapped = StoreError("weights cannot be written")
    wrapped.__cause__ = OSError(28, "No space left on device")
    assert "free space on the disk of /runs" in classify(wrapped, "/runs").advice


SAVE = """
import sys, torch
from safetensors.torch import save_file
from prefsweep.orchestrator.tasks.failures import classify
tensors = {"w": torch.zeros(1_000_000)}
save = {"torch": torch.save, "safetensors": save_file}[sys.argv[1]]
try:
    save(tensors, sys.argv[2])
except Exception as error:
    failure = classify(error, "/runs")
    print(failure.kind, "free space on the disk of /runs" in failure.advice, type(error).__name__)
"""


@pytest.mark.parametrize("library", ["torch", "safetensors"])
def test_a_file_that_libraries_cannot_write_is_transient(tmp_path: Path, library: str) -> None:
    """Neither raises an OSError: a process with a file-size limit shows what they do."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    run = subprocess.run(
        [sys.executable, "-c", SAVE, library, str(tmp_path / "file")],
        preexec_fn=limited,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith("transient"), run.stdout


def test_only_a_lost_gpu_makes_a_process_useless() -> None:
    assert is_broken_device(RuntimeError("CUDA error: unspecified launch failure"))
    assert not is_broken_device(RuntimeError("shapes do not fit"))


def test_what_ray_says_of_a_killed_worker_is_told() -> None:
    failure = worker_killed_for_memory("2 worker(s) were killed\nMemory on the node ...")
    assert failure.kind == "out_of_memory"
    assert failure.message == "Ray killed its worker to free memory: 2 worker(s) were killed"
    assert "resources.cpus_per_worker" in failure.advice


def test_waits_double_up_to_a_cap_and_half_of_them_is_random() -> None:
    retries = RetriesSpec(base_delay_s=2, max_delay_s=10)
    longest = [delay_s(retries, failed, jitter=1.0) for failed in (1, 2, 3, 4, 5, 1000)]
    assert longest == [2, 4, 8, 10, 10, 10]
    assert delay_s(retries, 3, jitter=0.0) == 4
    assert all(4 <= delay_s(retries, 3) <= 8 for _ in range(50))


def test_a_wait_ends_when_a_stop_is_asked_for() -> None:
    answers = iter([False, True])
    pause(10_000, lambda: next(answers))
