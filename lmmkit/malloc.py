"""The C allocator of a CPU run: an opt-in that trades memory for page faults."""

from __future__ import annotations

import ctypes
import platform

MMAP_MAX, TRIM_THRESHOLD = -4, -1  # parameters of glibc's mallopt


def keep_memory() -> str:
    """Makes glibc keep what is freed instead of giving it back to the system.

    A training step frees and takes hundreds of large tensors; above 32 MiB each would be fresh pages
    every time, at about half a second a GB. Costs memory: fragments stay. For the whole process.

    Returns:
        "" where it took, else why it did not.
    """
    libc = platform.libc_ver()[0]
    if libc != "glibc":
        return f"the C library is {libc or 'not glibc'}"
    mallopt = ctypes.CDLL(None).mallopt
    took = mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, -1)
    return "" if took else "mallopt refused"
