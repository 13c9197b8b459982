"""Random forests, and sequences that share prefixes at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lmmkit.attention.forest import Forest, make, roots


def random_forest(seed: int, *, most: int = 40, blocks: bool = True, permute: bool = True) -> Forest:
    """At most `most` rows: causal stretches, bidirectional blocks, branches, padding rows."""
    rng = np.random.default_rng(seed)
    enter: list[int] = []
    leave: list[int] = []
    pos: list[int] = []

    def grow(depth: int, at: int) -> None:
        n = int(rng.integers(1, 7))
        first, block = len(enter), blocks and rng.random() < 0.3
        enter.extend([first] * n if block else range(first, first + n))
        leave.extend([-1] * n)
        pos.extend(range(at, at + n))
        for _ in range(int(rng.integers(0, 4)) if depth < 4 else 0):
            if len(enter) < most - 8:
                grow(depth + 1, at + n)
        leave[first : first + n] = [len(enter)] * n

    while len(enter) < most - 8:
        grow(0, 0)
    for _ in range(int(rng.integers(0, 3))):  # padding: a leaf alone
        enter.append(len(enter))
        leave.append(len(enter))
        pos.append(0)
    order = rng.permutation(len(enter)) if permute else np.arange(len(enter))
    return make(*(np.asarray(a)[order] for a in (enter, leave, pos)))


def permuted(forest: Forest, order: torch.Tensor) -> Forest:
    """Returns the forest with row `order[i]` at place i of memory."""
    return Forest(forest.enter_T[order], forest.leave_T[order], forest.pos_T[order])


def random_groups(seed: int) -> list[list[np.ndarray]]:
    """Groups of int64 sequences over few letters, so that they share prefixes, or are prefixes."""
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(int(rng.integers(1, 4))):
        trunk = rng.integers(0, 3, int(rng.integers(0, 25)))
        views = []
        for _ in range(int(rng.integers(1, 5))):
            tail = rng.integers(0, 3, int(rng.integers(1 if not len(trunk) else 0, 12)))
            views.append(np.concatenate([trunk[: int(rng.integers(0, len(trunk) + 1))], tail]))
        groups.append([v if len(v) else np.zeros(1, np.int64) for v in views])
    return groups


def concat(forests: Sequence[Forest]) -> Forest:
    """Puts forests side by side, invisible to each other. Rows keep their order, forest by forest."""
    if not forests:
        return roots([])
    starts = np.cumsum([0, *(int(f.leave_T.max()) if len(f) else 0 for f in forests)]).tolist()
    enter = [f.enter_T + at for f, at in zip(forests, starts, strict=False)]
    leave = [f.leave_T + at for f, at in zip(forests, starts, strict=False)]
    return Forest(torch.cat(enter), torch.cat(leave), torch.cat([f.pos_T for f in forests]))
