"""Means with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

from lmmkit.evaluate.task import Figure

Z95 = 1.959964


def mean_with_interval(
    values: Sequence[float], clusters: Sequence[str], *, chance: float | None = None
) -> Figure:
    """Returns the mean of values in [0, 1], and its 95 % interval.

    The interval is Wilson's, which also holds at means of 0 and 1. Values from one cluster (questions on one
    scene) are not independent, so its number of values is the number of independent ones that would have the
    same variance.
    """
    x = np.asarray(values, float)
    n = len(x)
    if n == 0:
        nan = float("nan")
        return Figure(value=nan, low=nan, high=nan, chance=chance, n=0)
    mean = float(x.mean())
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    low, high = wilson(mean, n / _design_effect(x, member))
    return Figure(value=mean, low=low, high=high, chance=chance, n=n)


def wilson(mean: float, n: float) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a share `mean` of `n` independent values."""
    centre = (mean + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * sqrt(mean * (1 - mean) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


def _design_effect(x: np.ndarray, member: np.ndarray) -> float:
    """Returns the variance of the mean over that of as many independent values; 1 or more.

    The variance is that of the sums of clusters (linearisation of the ratio estimator). The largest effect, that
    of equal values in each cluster, is assumed if all values are equal, because they do not show any other.
    """
    n, mean = len(x), float(x.mean())
    most = float((np.bincount(member) ** 2).sum() / n)
    if mean in (0.0, 1.0):
        return most
    residual = np.bincount(member, weights=x - mean)
    g = len(residual)
    found = float((residual**2).sum()) * g / max(1, g - 1) / (n * mean * (1 - mean))
    return min(max(found, 1.0), most)
