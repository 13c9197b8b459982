"""Which errors report too little memory: those of the allocators themselves, and the texts of GPUs."""

from __future__ import annotations

import pytest
import torch

from lmmkit.memory_faults import is_out_of_memory

TOO_MUCH = 2**50  # bytes: more than a process can address


def caught(make) -> BaseException:
    with pytest.raises((MemoryError, RuntimeError)) as error:
        make()
    return error.value


def test_python_and_torch_say_that_there_is_no_memory():
    assert is_out_of_memory(caught(lambda: torch.empty(TOO_MUCH, dtype=torch.uint8)))
    assert is_out_of_memory(caught(lambda: bytearray(TOO_MUCH)))


@pytest.mark.parametrize(
    "text", ["CUDA out of memory. Tried to allocate 2.00 GiB.", "CUDA error: out of memory\nCUDA kernel errors might be",
             "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"],
)  # fmt: skip
def test_a_gpu_says_so_in_its_text(text):
    assert is_out_of_memory(torch.OutOfMemoryError(text)) and is_out_of_memory(RuntimeError(text))


def test_other_errors_are_not_about_memory():
    for error in (
        RuntimeError("shapes do not match"),
        ValueError("out of memory"),
        OSError("x"),
        RuntimeError(),
    ):
        assert not is_out_of_memory(error)
