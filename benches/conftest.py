"""Sets two threads for all benches, unless OMP_NUM_THREADS says otherwise."""

import os

import pytest
import torch

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Turns off `--dist` of pyproject: with it pytest-benchmark measures nothing."""
    if config.getoption("numprocesses", None) is None:
        config.option.dist = "no"
