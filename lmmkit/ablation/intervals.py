"""Means and paired differences with 95 % intervals: over seeds by Student's t, over questions by clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmmkit.evaluate.answers.compare import libraries, random_signs
from lmmkit.evaluate.bootstrap import paired_difference

SHARE = 0.95
ROUNDING = 1e-12  # of values up to 1, well above what a subtraction of floats leaves


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Holds a mean of `n` values with its interval and, of a difference, p: that of a test, and by Holm's correction.

    Without an interval: one value, or one cluster. Without `p`: these too, and values without any spread.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int
    p: float | None = None
    p_holm: float | None = None


def over_seeds(values: Sequence[float]) -> Estimate:
    """Returns the mean of values that are independent of each other, with its t interval and the p of a t test."""
    stats, _, _ = libraries("ablate")
    x = np.asarray(values, float)
    n, mean = len(x), float(x.mean())
    if n < 2:
        return Estimate(value=mean, n=n)
    if np.ptp(x) <= ROUNDING * max(1.0, float(np.abs(x).max())):
        return Estimate(value=mean, low=mean, high=mean, n=n)
    error = float(x.std(ddof=1)) / float(np.sqrt(n))
    half = float(stats.t.ppf((1 + SHARE) / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return Estimate(value=mean, low=mean - half, high=mean + half, n=n, p=p)


def over_questions(
    first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]], clusters: Mapping[str, str]
) -> Estimate:
    """Returns the mean of `first` minus `second` over questions, each the mean of its runs' scores.

    The interval is that of the cluster bootstrap; p is that of a test by random signs of the clusters' sums.
    """
    ids = list(first)
    a, b = ([float(np.mean(scores[id])) for id in ids] for scores in (first, second))
    found = paired_difference(a, b, [clusters[id] for id in ids])
    _, member = np.unique(
        np.asarray([clusters[id] for id in ids], dtype=object).astype(str), return_inverse=True
    )
    sums = np.bincount(member, weights=np.asarray(a) - np.asarray(b))
    sums[np.abs(sums) <= ROUNDING] = 0.0
    p = random_signs(sums) if len(sums) > 1 and np.any(sums) else None
    return Estimate(value=found.value, low=found.low, high=found.high, n=len(ids), p=p)


def with_holm(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Returns the estimates with their p corrected for all of them by Holm's method."""
    _, _, multipletests = libraries("ablate")
    tested = [each.p for each in estimates if each.p is not None]
    corrected = iter(multipletests(tested, method="holm")[1] if tested else ())
    return [each if each.p is None else replace(each, p_holm=float(next(corrected))) for each in estimates]
