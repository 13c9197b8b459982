"""`speed.deterministic`: only kernels that give the same bits each time; one that does not is told by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lmmkit.errors import MachineError
from lmmkit.errors.training import NOT_DETERMINISTIC
from lmmkit.recipe import Recipe

TORCH_SAYS = "does not have a deterministic implementation"


@contextmanager
def repeatable(recipe: Recipe) -> Iterator[None]:
    """Within, torch refuses kernels whose sums come in any order; nothing changes where that is not asked for.

    cuBLAS is repeatable in a workspace of a fixed size alone, which it reads from the environment as it
    starts.
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
def telling_kernel(where: str, recipe: Recipe) -> Iterator[None]:
    """Turns torch's refusal of a kernel into a `MachineError` that names it."""
    try:
        yield
    except RuntimeError as error:
        if TORCH_SAYS not in str(error):
            raise
        got = str(error).partition(", but you set")[0]
        setting = recipe.where("speed.deterministic")
        raise MachineError(NOT_DETERMINISTIC.at(where, got=got, setting=setting)) from error
