"""95 % intervals by the cluster bootstrap: questions of one cluster, often on one image, are drawn together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lmmkit.evaluate.task import Figure
from lmmkit.progress import counted

DRAWS = 2000
SEED = 0
BLOCK = 1 << 24  # most random numbers at once


def cluster_bootstrap(
    columns: np.ndarray, clusters: Sequence[str], statistic: Callable[[np.ndarray], np.ndarray], *,
    draws: int = DRAWS, seed: int = SEED,
) -> tuple[float, float] | tuple[None, None]:  # fmt: skip
    """Returns the 95 % interval of a statistic of sums, by percentiles; None for both ends with a single cluster, which
    shows no spread.

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
    if n < 2:
        return None, None
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


@dataclass(frozen=True)
class SummedFigure:
    """Holds a figure as a function of sums over items: F1 of true positives, false positives and false negatives.

    `columns`: [items, C], what is summed. `value`: sums [..., C] -> values [...].
    """

    columns: np.ndarray
    value: Callable[[np.ndarray], np.ndarray]


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Returns above / below; 0 where `below` is 0."""
    return np.divide(
        above, below, out=np.zeros(np.broadcast_shapes(above.shape, below.shape)), where=below != 0
    )


def paired_gain(
    first: SummedFigure,
    second: SummedFigure,
    clusters: Sequence[str],
    *,
    draws: int = DRAWS,
) -> Figure:
    """Returns a figure under one condition minus the same under another, on the same items, with its interval."""
    split = first.columns.shape[1]

    def difference(sums: np.ndarray) -> np.ndarray:
        return first.value(sums[..., :split]) - second.value(sums[..., split:])

    columns = np.concatenate([first.columns, second.columns], 1).astype(float)
    low, high = cluster_bootstrap(columns, clusters, difference, draws=draws)
    return Figure(value=float(difference(columns.sum(0))), low=low, high=high, n=len(columns))


def paired_difference(first: Sequence[float], second: Sequence[float], clusters: Sequence[str]) -> Figure:
    """Returns the mean of `first` minus `second`, of the same items, with its interval."""
    difference = np.asarray(first, float) - np.asarray(second, float)
    columns = np.stack([difference, np.ones_like(difference)], 1)
    low, high = cluster_bootstrap(columns, clusters, lambda s: s[..., 0] / s[..., 1])
    return Figure(value=float(difference.mean()), low=low, high=high, n=len(difference))


def _counts(picked: np.ndarray, n: int) -> np.ndarray:
    """Returns how often each of `n` clusters was drawn, one line for each bootstrap sample."""
    lines = len(picked)
    flat = (picked + n * np.arange(lines)[:, None]).ravel()
    return np.bincount(flat, minlength=lines * n).reshape(lines, n).astype(float)
