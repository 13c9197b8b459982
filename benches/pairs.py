"""Ours and a peer, turn by turn in one process: the ratio of their times, with an interval."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch

PAIRS = 15


def compare(ours: Callable[[], object], peer: Callable[[], object], pairs: int = PAIRS) -> dict[str, object]:
    """Runs each `pairs` times, alternating who is first; how many times longer the peer takes.

    Returns:
        `ratio`, the median of the pairs' ratios; `low` and `high`, its 95 % interval by order
        statistics; and the medians of both times in seconds.
    """
    ours(), peer()
    times: list[tuple[float, float]] = []
    for i in range(pairs):
        first, second = (ours, peer) if i % 2 else (peer, ours)
        a, b = _seconds(first), _seconds(second)
        times.append((a, b) if i % 2 else (b, a))
    ratios = sorted(theirs / mine for mine, theirs in times)
    cut = _cut(pairs)
    return {
        "ratio": statistics.median(ratios), "low": ratios[cut], "high": ratios[-1 - cut], "pairs": pairs,
        "seconds": statistics.median(t for t, _ in times),
        "peer_seconds": statistics.median(t for _, t in times),
        "threads": torch.get_num_threads(), "malloc": os.environ.get("LD_PRELOAD") or "default",
        "torch": torch.__version__,
    }  # fmt: skip


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _cut(n: int) -> int:
    """How many of n sorted values may be cut off each end with the median inside at 95 %."""
    from math import comb

    tail, cut = 0.0, 0
    while (tail := tail + comb(n, cut) / 2**n) <= 0.025:
        cut += 1
    return max(cut - 1, 0)
