"""Recognizes errors that report too little memory: Python's, and torch's on the CPU and on a GPU."""

from __future__ import annotations

TEXTS = ("out of memory", "DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error reports that there is not enough memory. torch's are `RuntimeError`s with a text."""
    text = str(error) if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or any(each in text for each in TEXTS)
