"""Means over all items of a benchmark and over their groups, each next to the best constant answer; ratios of sums."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Protocol

from lmmkit.evaluate.stats import mean_with_interval, wilson
from lmmkit.evaluate.task import Figure


class Grouped(Protocol):
    """Defines what is read of an item."""

    @property
    def cluster(self) -> str: ...
    @property
    def groups(self) -> Mapping[str, str]: ...


def group_means(
    name: str,
    items: Sequence[Grouped],
    scores: Sequence[float],
    *,
    kinds: Sequence[str] = (),
    constants: Sequence[Mapping[str, float]] | None = None,
) -> dict[str, Figure]:
    """Returns the mean score of all items as `name`, and that of each group as "NAME/GROUP"; none without items.

    Args:
        name: the figure's name.
        items: the items.
        scores: of each item, in [0, 1].
        kinds: the kinds of groups, keys of `Item.groups`.
        constants: for each item the answers that score more than 0, with their score. Gives the chance level: the
            mean of the one answer that is best for all items of the group.
    """
    members: dict[str, list[int]] = {"": list(range(len(items)))}
    for kind in kinds:
        found: dict[str, list[int]] = defaultdict(list)
        for i, item in enumerate(items):
            if kind in item.groups:
                found[f"/{item.groups[kind]}"].append(i)
        members |= {detail: found[detail] for detail in sorted(found, key=_natural)}
    return {
        name + detail: mean_with_interval(
            [scores[i] for i in indices],
            [items[i].cluster for i in indices],
            chance=None if constants is None else best_constant_mean([constants[i] for i in indices]),
        )
        for detail, indices in members.items()
        if indices
    }


def best_constant_mean(constants: Sequence[Mapping[str, float]]) -> float | None:
    """Returns the mean score of the one answer that is best for all items; None without items.

    Args:
        constants: for each item the answers that score more than 0, with their score.
    """
    total: dict[str, float] = defaultdict(float)
    for scores in constants:
        for answer, score in scores.items():
            total[answer] += score
    return max(total.values(), default=0.0) / len(constants) if constants else None


def mean_of_ratios(
    parts: Sequence[Sequence[tuple[float, float, str]]], *, chance: float | None = None
) -> Figure:
    """Returns the mean over parts of sum(a) / sum(b), a share in [0, 1], with its 95 % interval.

    A part without b counts as 0. The interval is Wilson's for the number of independent values that would have the
    variance of the sums of clusters (linearisation), at most the number of items.

    Args:
        parts: for each part the (a, b, cluster) of its items.
        chance: the value at chance.
    """
    ratios = []
    residual: dict[str, float] = defaultdict(float)
    for part in parts:
        bottom = sum(b for _, b, _ in part)
        ratio = sum(a for a, _, _ in part) / bottom if bottom else 0.0
        ratios.append(ratio)
        for a, b, cluster in part:
            residual[cluster] += (a - ratio * b) / (bottom * len(parts)) if bottom else 0.0
    n = sum(len(part) for part in parts)
    if not n:
        return Figure(value=float("nan"), chance=chance, n=0)
    value, g = sum(ratios) / len(ratios), len(residual)
    variance = sum(each**2 for each in residual.values()) * g / max(1, g - 1)
    binomial = value * (1 - value)
    low, high = wilson(value, min(n, binomial / variance) if variance and binomial > 0 else g)
    return Figure(value=value, low=low, high=high, chance=chance, n=n)


def _natural(text: str) -> list[tuple[int, str]]:
    """Returns a key that sorts numbers in texts by their value: "9 words" before "10 words"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]
