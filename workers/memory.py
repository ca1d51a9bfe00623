"""Recognizes out-of-memory errors, and releases unused memory."""

import ctypes
import gc
import sys

import torch

_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""Texts of RuntimeErrors that torch's CPU allocator, cuBLAS and cuDNN raise."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that the GPU or the host is out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return type(error) is RuntimeError and any(sign in str(error) for sign in _SIGNS)


def release_memory() -> None:
    """Collect garbage, and release the cached memory of the GPU and of the C library.

    glibc caches freed memory per thread, and every trial runs in its own thread.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # musl does not have it
        trim(0)
