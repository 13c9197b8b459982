"""All benches: two threads unless OMP_NUM_THREADS says otherwise, and the allocator that was asked for."""

import os

import pytest
import torch

from lmmkit.malloc import keep_memory

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
if os.environ.get("LMMKIT_MALLOC") == "kept" and (why_not := keep_memory()):
    raise SystemExit(f"LMMKIT_MALLOC=kept: {why_not}")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """The tests' `--dist` in pyproject is not for benches: at it pytest-benchmark would measure nothing."""
    if config.getoption("numprocesses", None) is None:
        config.option.dist = "no"
