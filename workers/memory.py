"""Running out of memory: what it looks like, and giving back what is no longer used."""

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
"""What plain RuntimeErrors say: those of torch's CPU allocator, of cuBLAS and of cuDNN."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the GPU or the host, was not enough."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return type(error) is RuntimeError and any(sign in str(error) for sign in _SIGNS)


def release_memory() -> None:
    """Collect what nothing refers to, and give the GPU's cached blocks and the C library's back.

    glibc keeps freed memory for the thread that had it, and every trial is a thread of its own.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # musl has none
        trim(0)
