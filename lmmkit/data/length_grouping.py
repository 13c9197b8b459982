"""Steps of rows that are alike: with a picture or without, and longest first, as LLaVA groups them.

LLaVA shuffles an epoch, parts rows with a picture from rows of text, cuts each into batches sorted by
length, and shuffles the batches; what is left over comes last, mixed. Here the same happens inside
windows of `WINDOW` steps of an order, which makes the row at a position a function of that window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lmmkit.data.sampler import Sampler, philox

WINDOW = 64  # steps; one of them at most is mixed
At = tuple[str, int, int]  # source, its epoch, row


@dataclass(frozen=True)
class GroupedSampler:
    """An order whose steps of `samples` rows are alike, over the first `total` positions.

    `words`: for each row of each source its length, below 0 where it has no picture. With `alike`
    a window's rows are sorted by length before they are cut, so that a step's are of like length
    (transformers' grouping); else a step's rows are random and sorted within the step (LLaVA's).
    """

    order: Sampler
    words: Mapping[str, np.ndarray]
    samples: int
    total: int
    by_length: bool
    _kept: dict[int, list[At]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def weights(self) -> Mapping[str, float]:
        """As of the order."""
        return self.order.weights

    @property
    def len_epoch(self) -> int:
        """As of the order."""
        return self.order.len_epoch

    def at(self, k: int) -> At:
        """(source, epoch of that source, row) at position `k`, whatever was asked before."""
        window, i = divmod(k, WINDOW * self.samples)
        if window not in self._kept:
            self._kept.clear()
            self._kept[window] = self._window(window)
        return self._kept[window][i]

    def replacement(self, source: str, epoch: int, row: int) -> int:
        """As of the order."""
        return self.order.replacement(source, epoch, row)

    def _window(self, window: int) -> list[At]:
        start = window * WINDOW * self.samples
        rows = [self.order.at(k) for k in range(start, min(start + WINDOW * self.samples, self.total))]
        words_N = np.array([int(self.words[source][row]) for source, _, row in rows])
        batches, rest_N = [], []
        for pool_N in (np.flatnonzero(words_N >= 0), np.flatnonzero(words_N < 0)):
            pool_N = _longest_first(pool_N, words_N) if self.by_length else pool_N
            cuts = range(self.samples, len(pool_N) + 1, self.samples)
            *whole, left_N = np.split(pool_N, list(cuts))
            batches += whole
            rest_N.append(left_N)
        shuffled = np.argsort(
            philox("group", self.order.seed, start, self.samples).random_raw(len(batches)), kind="stable"
        )
        chosen = [_longest_first(batches[j], words_N) for j in shuffled]
        chosen.append(_longest_first(np.concatenate(rest_N), words_N))
        return [rows[i] for i in np.concatenate(chosen).tolist()]

    def __reduce__(self) -> tuple[object, ...]:
        return GroupedSampler, (self.order, self.words, self.samples, self.total, self.by_length)


def _longest_first(pool_N: np.ndarray, words_N: np.ndarray) -> np.ndarray:
    return pool_N[np.argsort(-np.abs(words_N[pool_N]), kind="stable")]
