"""Divides the samples of a step among ranks, so that all ranks have about the same number of rows.

A step takes as long as its fullest rank. Sums are divided by the counts of all ranks, so it does not matter
for the result which rank gets a sample.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

TOKENS_PER_WORD = 1.3  # English text in the tokenizers of LLaMA and Qwen, rounded


def estimated_rows(words: int, image_rows: int) -> float:
    """Returns about how many rows a record takes. `words`: as in the record index, below 0 without an image."""
    return TOKENS_PER_WORD * abs(words) + (image_rows if words >= 0 else 0)


def balanced_shares(rows: Sequence[float], world: int) -> list[list[int]]:
    """Returns the samples of each rank, ascending.

    The longest sample comes first, and each goes to the rank with the fewest rows so far (Graham's rule of
    the longest processing time). Equal inputs give equal shares on every rank.
    """
    shares: list[list[int]] = [[] for _ in range(world)]
    load = [(0.0, rank) for rank in range(world)]
    for sample in sorted(range(len(rows)), key=lambda i: (-rows[i], i)):
        least, rank = load[0]
        shares[rank].append(sample)
        heapq.heapreplace(load, (least + rows[sample], rank))
    return [sorted(share) for share in shares]
