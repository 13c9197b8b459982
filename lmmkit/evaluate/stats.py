"""Means with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Z95 = 1.959964


def mean_with_interval(values: Sequence[float], clusters: Sequence[str]) -> dict[str, float | int]:
    """Returns {value, low, high, n}: the mean and its 95 % interval.

    Values from one cluster (questions on one scene) are not independent. The standard error is therefore that
    of the cluster sums (linearisation of the ratio estimator), with the normal approximation.
    """
    x = np.asarray(values, float)
    n = len(x)
    if n == 0:
        return {"value": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    mean = float(x.mean())
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    residual = np.bincount(member, weights=x - mean)
    g = len(residual)
    error = float(np.sqrt((residual**2).sum() * g / max(1, g - 1)) / n)
    return {"value": mean, "low": max(0.0, mean - Z95 * error), "high": min(1.0, mean + Z95 * error), "n": n}
