"""The order of samples: a pure function of position, sources, weights and seed.

Nothing about it is ever saved but the position. Permutations come from the raw output of a
counter-based generator, which numpy promises to keep; its `permutation` it may change.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lmmkit.errors import Problem, did_you_mean, raise_all
from lmmkit.errors.data import ORDER_EMPTY, SOURCE, WEIGHT


def sample_rng(seed: int, instance: str, key: str, epoch: int) -> np.random.Generator:
    """The generator that plugin `instance` uses on sample `key` in `epoch`; the same everywhere."""
    return np.random.Generator(philox("sample", seed, instance, key, epoch))


@dataclass
class _Kept:
    """What an order keeps for the next position: counts before it, and a permutation a source."""

    counts: tuple[int, tuple[int, ...]] = (0, ())
    permutations: dict[str, tuple[int, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampler:
    """Which row stands at each position of an endless stream over one or more sources.

    `sizes`: rows of each source; `weights`: the share of the stream each source gets (they need
    not add up to one; a source without weight stays out). One source runs through a new
    permutation each epoch. Of several, the next row is always from the source that lags most:
    the one whose next row, at an even pace, is due first, row j of a source of weight w being
    due at (j + 1/2) / w; at a tie, the one named first in `weights`.

    Raises `UserError` for unknown sources, empty ones, and weights that are no shares.
    """

    sizes: Mapping[str, int]
    weights: Mapping[str, float]
    seed: int
    _kept: _Kept = field(default_factory=_Kept, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        raise_all(_problems(self.sizes, self.weights))
        weights = {name: float(w) for name, w in self.weights.items() if w > 0}
        object.__setattr__(self, "weights", weights)

    @property
    def len_epoch(self) -> int:
        """Positions in one epoch: the sizes of all sources of the stream, added up.

        For one source this is one pass. In a mixture it only sets the length: a source of more
        weight than its size accounts for runs through some rows twice, another through a part.
        """
        return sum(self.sizes[name] for name in self.weights)

    def at(self, k: int) -> tuple[str, int, int]:
        """(source, epoch of that source, row) at position `k` >= 0, whatever was asked before.

        Cheap when positions are asked in rising order: the counts and one permutation a source
        are kept.
        """
        names = list(self.weights)
        if len(names) == 1:
            source, n = names[0], k
        else:
            counts = self._counts(k)
            i = _next(counts, list(self.weights.values()))
            source, n = names[i], counts[i]
            self._kept.counts = (k + 1, (*counts[:i], n + 1, *counts[i + 1 :]))
        epoch, i = divmod(n, self.sizes[source])
        return source, epoch, int(self._permutation(source, epoch)[i])

    def replacement(self, source: str, epoch: int, row: int) -> int:
        """The row that comes after `row` in this epoch of the source; after the last, the first."""
        rows = self._permutation(source, epoch)
        (i,) = np.flatnonzero(rows == row)
        return int(rows[(i + 1) % len(rows)])

    def _counts(self, k: int) -> list[int]:
        """How many of the first `k` positions each source has."""
        at, known = self._kept.counts
        if at == k and known:
            return list(known)
        weights = list(self.weights.values())
        total = sum(weights)
        # When k rows are out, the time is k / total give or take half a row a source; what is due
        # well before that is out for certain, and the few rows that are left are stepped through.
        time = (k - len(weights) / 2) / total
        counts = [max(0, math.floor(w * time + 0.5) - 1) for w in weights]
        for _ in range(k - sum(counts)):
            counts[_next(counts, weights)] += 1
        return counts

    def _permutation(self, source: str, epoch: int) -> np.ndarray:
        at, known = self._kept.permutations.get(source, (-1, None))
        if at == epoch and known is not None:
            return known
        draws = philox("order", self.seed, source, epoch).random_raw(self.sizes[source])
        rows = np.argsort(draws, kind="stable")
        self._kept.permutations[source] = (epoch, rows)
        return rows

    def __reduce__(self) -> tuple[object, ...]:
        return Sampler, (dict(self.sizes), dict(self.weights), self.seed)


def _next(counts: list[int], weights: list[float]) -> int:
    """The source whose next row is due first."""
    due = [(n + 0.5) / w for n, w in zip(counts, weights, strict=True)]
    return due.index(min(due))


def philox(*parts: str | int) -> np.random.Philox:
    """A generator keyed by a hash of the parts, each told from its neighbour by its length."""
    spelt = [str(part).encode("utf-8", "surrogatepass") for part in parts]
    digest = hashlib.blake2b(digest_size=16)
    for part in spelt:
        digest.update(len(part).to_bytes(8, "little") + part)
    return np.random.Philox(key=int.from_bytes(digest.digest(), "little"))


def _problems(sizes: Mapping[str, int], weights: Mapping[str, float]) -> list[Problem]:
    problems = []
    for name, weight in weights.items():
        where = f"data weight of `{name}`"
        if name not in sizes:
            problems.append(SOURCE.at(where, got="no such source", nearest=did_you_mean(name, sizes)))
        elif sizes[name] < 1:
            problems.append(ORDER_EMPTY.at(where, got=f"{sizes[name]} records"))
        if not (math.isfinite(weight) and weight >= 0):
            problems.append(WEIGHT.at(where, got=str(weight)))
    if not any(weight > 0 for weight in weights.values()):
        problems.append(WEIGHT.at("data weight of all sources", got="none above 0"))
    return problems
