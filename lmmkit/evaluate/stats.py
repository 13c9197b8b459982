"""Means with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmmkit.evaluate.task import Figure

Z95 = 1.959964


def mean_with_interval(
    values: Sequence[float], clusters: Sequence[str], *, chance: float | None = None
) -> Figure:
    """Returns the mean and its 95 % interval.

    Values from one cluster (questions on one scene) are not independent. The standard error is therefore that
    of the cluster sums (linearisation of the ratio estimator), with the normal approximation.
    """
    x = np.asarray(values, float)
    n = len(x)
    if n == 0:
        nan = float("nan")
        return Figure(value=nan, low=nan, high=nan, chance=chance, n=0)
    mean = float(x.mean())
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    residual = np.bincount(member, weights=x - mean)
    g = len(residual)
    half = Z95 * float(np.sqrt((residual**2).sum() * g / max(1, g - 1)) / n)
    return Figure(value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half), chance=chance, n=n)
