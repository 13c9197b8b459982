"""Times ours and a peer in turn in one process: the ratio of their times, with an interval."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from math import comb

import torch

PAIRS = max(15, int(os.environ.get("LMMKIT_PAIRS", 15)))  # use more on a noisy machine
StepReport = dict[str, object]
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}  # read by glibc as a process starts


def compare(ours: Callable[[], object], peer: Callable[[], object], pairs: int = PAIRS) -> StepReport:
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
    } | machine()  # fmt: skip


def exact(ratio: float) -> StepReport:
    """Returns a ratio that is counted, not timed: bytes or rows."""
    return {"ratio": ratio, "low": ratio, "high": ratio, "pairs": 1} | machine()


def keeps_memory() -> bool:
    """Returns whether glibc's allocator keeps freed memory in the process."""
    return KEPT.items() <= os.environ.items()


def machine() -> StepReport:
    """Describes the machine and its settings."""
    return {
        "threads": torch.get_num_threads(), "malloc": "kept" if keeps_memory() else "default",
        "torch": torch.__version__, "load": os.getloadavg()[0],
    }  # fmt: skip


def verdict(case: StepReport) -> str:
    """Compares the near end of the interval with the gate and target of the case.

    `sense` is `at least` or `at most`; a case without a gate is for information.
    """
    if case.get("gate") is None:
        return ""
    most = case["sense"] == "at most"
    near = case["high"] if most else case["low"]

    def reaches(limit: object) -> bool:
        return near <= limit if most else near >= limit  # type: ignore[operator]

    if not reaches(case["gate"]):
        return "MISSED"
    return "target" if case.get("target") is not None and reaches(case["target"]) else "pass"


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _cut(n: int) -> int:
    """Returns how many of n sorted values may be cut off each end with the median inside at 95 %."""
    tail, cut = 0.0, 0
    while (tail := tail + comb(n, cut) / 2**n) <= 0.025:
        cut += 1
    return max(cut - 1, 0)
