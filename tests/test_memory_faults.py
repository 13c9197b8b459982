"""Errors about too little memory: those of the allocators themselves, and the texts of GPUs, named as faults of the machine."""

from __future__ import annotations

import pytest
import torch

from lmmkit.errors import MachineError
from lmmkit.memory_faults import is_out_of_memory, naming_memory

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


def test_an_error_about_memory_names_the_work_and_others_pass():
    with pytest.raises(MachineError) as error, naming_memory("the answer"):
        torch.empty(TOO_MUCH, dtype=torch.uint8)
    (problem,) = error.value.problems
    assert (problem.code, problem.where) == ("machine/out-of-memory", "the answer")
    assert "DefaultCPUAllocator" in problem.got and "\n" not in problem.got
    with pytest.raises(MachineError, match="got MemoryError"), naming_memory("here"):
        raise MemoryError
    with pytest.raises(RuntimeError, match="shapes"), naming_memory("here"):
        raise RuntimeError("shapes do not match")
