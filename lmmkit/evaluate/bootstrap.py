"""95 % intervals by the cluster bootstrap: questions of one cluster, often on one image, are drawn together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lmmkit.evaluate.task import Figure
from lmmkit.progress import counted

DRAWS = 2000
SEED = 0
BLOCK = 1 << 24  # most random numbers at once


def cluster_bootstrap(
    columns: np.ndarray, clusters: Sequence[str], statistic: Callable[[np.ndarray], np.ndarray], *,
    draws: int = DRAWS, seed: int = SEED,
) -> tuple[float, float]:  # fmt: skip
    """Returns the 95 % interval of a statistic of sums, by percentiles.

    Args:
        columns: [items, C], values that are summed over items: for a mean the value and 1, for F1 the true
            positives, false positives and false negatives.
        clusters: of each item.
        statistic: sums [..., C] -> values [...].
        draws: number of bootstrap samples.
        seed: of the draws.
    """
    _, member = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    n = int(member.max()) + 1
    sums = np.stack([np.bincount(member, weights=column, minlength=n) for column in columns.T], 1)
    rng, found = np.random.default_rng(seed), []
    step = max(1, BLOCK // n)
    for first in counted("drawing samples for an interval", range(0, draws, step)):
        picked = rng.integers(n, size=(min(step, draws - first), n))
        counts = _counts(picked, n)
        found.append(statistic(counts @ sums))
    values = np.concatenate(found)
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def paired_difference(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[str], *,
    draws: int = DRAWS, seed: int = SEED,
) -> Figure:  # fmt: skip
    """Returns the mean of `first` minus `second`, of the same items, with its interval."""
    difference = np.asarray(first, float) - np.asarray(second, float)
    columns = np.stack([difference, np.ones_like(difference)], 1)
    low, high = cluster_bootstrap(columns, clusters, lambda s: s[..., 0] / s[..., 1], draws=draws, seed=seed)
    return Figure(value=float(difference.mean()), low=low, high=high, n=len(difference))


def _counts(picked: np.ndarray, n: int) -> np.ndarray:
    """Returns how often each of `n` clusters was drawn, one line for each bootstrap sample."""
    lines = len(picked)
    flat = (picked + n * np.arange(lines)[:, None]).ravel()
    return np.bincount(flat, minlength=lines * n).reshape(lines, n).astype(float)
