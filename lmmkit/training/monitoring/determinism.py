"""`speed.deterministic`: allows only kernels that give the same bits each time, and names any other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from lmmkit.attention.trial import deterministic_kernels
from lmmkit.errors import MachineError
from lmmkit.errors.training import NOT_DETERMINISTIC
from lmmkit.recipe import Recipe

_REFUSAL = "does not have a deterministic implementation"


def repeatable(recipe: Recipe) -> AbstractContextManager[None]:
    """Makes torch refuse nondeterministic kernels within the block, if the recipe asks for it."""
    return deterministic_kernels(recipe.speed.deterministic)


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
