"""Too little memory as a fault of the machine: Python's, and torch's on the CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lmmkit.errors import MachineError
from lmmkit.errors.commands import NO_MEMORY

TEXTS = ("out of memory", "DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error reports that there is not enough memory. torch's are `RuntimeError`s with a text."""
    text = str(error) if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or any(each in text for each in TEXTS)


@contextmanager
def naming_memory(where: str) -> Iterator[None]:
    """Converts an error about memory in the block to a `MachineError`. `where`: the work, in words."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        got = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise MachineError(NO_MEMORY.at(where, got=got)) from error
