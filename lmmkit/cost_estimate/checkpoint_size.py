"""Computes the bytes of checkpoints on disk before any weight exists."""

from __future__ import annotations

from collections.abc import Sequence

from lmmkit.cost_estimate.staged_model import all_parameters, staged
from lmmkit.optimizers import state_bytes
from lmmkit.plan.prepare import Prepared


def checkpoint_bytes(prepared: Prepared) -> list[tuple[int, int]]:
    """Returns for each stage the bytes of a checkpoint, and of the frozen weights its checkpoints share."""
    sizes = []
    for name, stage in prepared.recipe.stages.items():
        objective, trainable = staged(prepared, name)
        frozen = sum(p.nbytes for p in objective.lmm.parameters() if not p.requires_grad)
        moments = state_bytes(stage.optim.kind, (p.numel() for p in all_parameters(trainable)))
        sizes.append((sum(p.nbytes for p in objective.parameters()) - frozen + moments, frozen))
    return sizes


def checkpoint_room(sizes: Sequence[tuple[int, int]], keep: int) -> int:
    """Returns the most bytes on disk of `keep` checkpoints and one being written, with two copies of the
    frozen weights of each of their stages. They are from one stage, or from consecutive stages."""
    slots = keep + 1
    rows = [sizes[i:j] for i in range(len(sizes)) for j in range(i + 1, min(len(sizes), i + slots) + 1)]
    return max(
        sum(own + 2 * frozen for own, frozen in row) + (slots - len(row)) * max(own for own, _ in row)
        for row in rows
    )
