"""What a trial has freed is free for others, although its thread has ended."""

import ctypes
import sys
import threading

import psutil
import pytest
import torch

from prefsweep.workers.memory import release_memory

MIB = 2**20


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="glibc's allocator",
)
def test_memory_that_an_ended_thread_freed_goes_back() -> None:
    process, kept = psutil.Process(), list[torch.Tensor]()

    def trial() -> None:
        tensors = [torch.zeros(200_000 + i) for i in range(600)]  # 460 MiB, in glibc's heap
        kept.append(torch.zeros(10))
        del tensors[::2], tensors

    for _ in range(2):
        thread = threading.Thread(target=trial)
        thread.start()
        thread.join()
    before = process.memory_info().rss
    release_memory()
    assert before - process.memory_info().rss > 200 * MIB
