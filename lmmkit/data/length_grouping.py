"""Groups the records of a step as LLaVA does: only records with an image or only text, longest first.

LLaVA shuffles an epoch, separates records with an image from text records, cuts each kind into batches
sorted by length, and shuffles the batches. The remaining records come last, mixed. Here this happens
within windows of `WINDOW` steps of the sampler, so the record at a position depends on its window only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lmmkit.data.sampler import Sampler, philox

WINDOW = 64  # steps; at most one of them is mixed
At = tuple[str, int, int]  # source, its epoch, record


@dataclass(frozen=True)
class GroupedSampler:
    """Groups the records of `order` into steps of `samples` similar ones, for the first `total` positions.

    `words`: the length of each record of each source, below 0 if it has no image. With `by_length`
    the records of a window are sorted by length before they are cut, so a step has records of similar
    length (transformers' grouping). Otherwise a step has random records, sorted within the step (LLaVA's).
    """

    order: Sampler
    words: Mapping[str, np.ndarray]
    samples: int
    total: int
    by_length: bool
    _kept: dict[int, list[At]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def weights(self) -> Mapping[str, float]:
        """Returns the weights of `order`."""
        return self.order.weights

    @property
    def len_epoch(self) -> int:
        """Returns the epoch length of `order`."""
        return self.order.len_epoch

    def at(self, k: int) -> At:
        """Returns (source, epoch of that source, record) at position `k`, independent of earlier calls."""
        window, i = divmod(k, WINDOW * self.samples)
        if window not in self._kept:
            self._kept.clear()
            self._kept[window] = self._window(window)
        return self._kept[window][i]

    def replacement(self, source: str, epoch: int, record: int) -> int:
        """Returns the replacement that `order` gives."""
        return self.order.replacement(source, epoch, record)

    def _window(self, window: int) -> list[At]:
        start = window * WINDOW * self.samples
        found = [self.order.at(k) for k in range(start, min(start + WINDOW * self.samples, self.total))]
        words_N = np.array([int(self.words[source][record]) for source, _, record in found])
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
        return [found[i] for i in np.concatenate(chosen).tolist()]

    def __reduce__(self) -> tuple[object, ...]:
        return GroupedSampler, (self.order, self.words, self.samples, self.total, self.by_length)


def _longest_first(pool_N: np.ndarray, words_N: np.ndarray) -> np.ndarray:
    return pool_N[np.argsort(-np.abs(words_N[pool_N]), kind="stable")]
