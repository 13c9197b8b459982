"""`speed.deterministic`: allows only kernels that give the same bits each time, and names any other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lmmkit.errors import MachineError
from lmmkit.errors.training import NOT_DETERMINISTIC
from lmmkit.recipe import Recipe

_REFUSAL = "does not have a deterministic implementation"


@contextmanager
def repeatable(recipe: Recipe) -> Iterator[None]:
    """Makes torch refuse nondeterministic kernels within the block, if the recipe asks for it.

    cuBLAS is deterministic only with a workspace of a fixed size. It reads the size from the environment when
    it starts.
    """
    if not recipe.speed.deterministic:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def naming_kernel(where: str, recipe: Recipe) -> Iterator[None]:
    """Converts torch's refusal of a kernel to a `MachineError` that names the kernel."""
    try:
        yield
    except RuntimeError as error:
        if _REFUSAL not in str(error):
            raise
        got = str(error).partition(", but you set")[0]
        setting = recipe.where("speed.deterministic")
        raise MachineError(NOT_DETERMINISTIC.at(where, got=got, setting=setting)) from error
