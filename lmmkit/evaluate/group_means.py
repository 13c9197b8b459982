"""Means over all items of a benchmark and over their groups, each next to the best constant answer."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Protocol

from lmmkit.evaluate.stats import mean_with_interval
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
    """Returns the mean score of all items as `name`, and that of each group as "NAME/GROUP".

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


def _natural(text: str) -> list[tuple[int, str]]:
    """Returns a key that sorts numbers in texts by their value: "9 words" before "10 words"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]
