"""Out of memory: the error names the step, its size, and the recipe keys that reduce memory use."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lmmkit.api.batch import Step
from lmmkit.errors import MachineError, Problem
from lmmkit.errors.training import OUT_OF_MEMORY
from lmmkit.memory_faults import is_out_of_memory
from lmmkit.progress import plural
from lmmkit.recipe import Recipe


@contextmanager
def naming_memory_keys(
    where: str, step: Step, recipe: Recipe, device: torch.device, *, alone: bool
) -> Iterator[None]:
    """Converts an allocator error within a step to a `MachineError`; the step is not retried.

    `alone`: whether one process trains. Several cannot use `adamw8bit`, so it is not suggested to them.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MachineError(_no_room(where, step, recipe, device, alone, error)) from error


def _no_room(
    where: str, step: Step, recipe: Recipe, device: torch.device, alone: bool, error: BaseException
) -> Problem:
    fullest = max(step, key=len)
    got = (
        f"no memory for {plural(len(step), 'micro-batch', 'micro-batches')} of a step, "
        f"the largest with {len(fullest)} rows, "
        f"{plural(fullest.images, 'image')} and {len(fullest.target_S)} supervised rows, at a peak of "
        f"{_peak(device):,.1f} GiB: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    )
    speed = recipe.speed
    keys = [
        f"`speed.tokens` below {min(speed.tokens, len(fullest))} (a step still has as many samples)",
        *(["`speed.recompute: all`"] if speed.recompute != "all" else []),
        *(["`optim.kind: adamw8bit`"] if alone else []),
        "`train.text.lora`",
        *(["`numerics.frozen: bfloat16`"] if recipe.numerics.frozen == "float32" else []),
    ]
    return OUT_OF_MEMORY.at(where, got=got, keys=", ".join(keys))


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
