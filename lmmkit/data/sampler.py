"""The order of samples: a pure function of position, sources, weights and seed.

Only the position is saved. Permutations are computed from the raw output of a counter-based generator,
because numpy guarantees that this output stays equal. It gives no such guarantee for `permutation`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lmmkit.errors import Problem, did_you_mean, raise_all
from lmmkit.errors.data import ORDER_EMPTY, ORDER_SOURCE, WEIGHT


def sample_rng(seed: int, instance: str, key: str, epoch: int) -> np.random.Generator:
    """Returns the generator that plugin `instance` uses for sample `key` in `epoch`, equal on all ranks."""
    return np.random.Generator(philox("sample", seed, instance, key, epoch))


@dataclass
class _Kept:
    """Caches data for the next position: the counts before it, and one permutation for each source."""

    counts: tuple[int, tuple[int, ...]] = (0, ())
    permutations: dict[str, tuple[int, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampler:
    """Maps each position of an endless stream over one or more sources to a record.

    `sizes`: the number of records of each source. `weights`: the share of the stream that each source
    gets. They need not add up to one; a source with weight 0 is left out. Each source runs through a
    new permutation in each epoch. With several sources, record j of a source with weight w is due at
    (j + 1/2) / w, and the next record is the one that is due first. At a tie it comes from the source
    that `weights` names first.

    Raises `UserError` for unknown or empty sources, and for weights that are negative or not finite.
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
        """Returns the number of positions in one epoch: the sum of the sizes of all sources with weight.

        For one source this is one pass. In a mixture it only sets the length: a source whose weight is
        high for its size repeats some records, and another source gives only a part of its records.
        """
        return sum(self.sizes[name] for name in self.weights)

    def at(self, k: int) -> tuple[str, int, int]:
        """Returns (source, epoch of that source, record) at position `k` >= 0, independent of earlier calls.

        Rising positions are cheap, because the counts and one permutation for each source are cached.
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
        """Returns the record after `row` in this epoch of the source; after the last one, the first."""
        rows = self._permutation(source, epoch)
        (i,) = np.flatnonzero(rows == row)
        return int(rows[(i + 1) % len(rows)])

    def _counts(self, k: int) -> list[int]:
        """Returns how many of the first `k` positions each source has."""
        at, known = self._kept.counts
        if at == k and known:
            return list(known)
        weights = list(self.weights.values())
        total = sum(weights)
        # After k records the time is k / total, plus or minus half a record for each source. Records due
        # well before that time are certainly counted. The loop adds the few that remain.
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
    """Returns the index of the source whose next record is due first."""
    due = [(n + 0.5) / w for n, w in zip(counts, weights, strict=True)]
    return due.index(min(due))


def philox(*parts: str | int) -> np.random.Philox:
    """Returns a generator keyed by a hash of the parts. Each part is hashed with its length before it."""
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
            problems.append(ORDER_SOURCE.at(where, got="no such source", nearest=did_you_mean(name, sizes)))
        elif sizes[name] < 1:
            problems.append(ORDER_EMPTY.at(where, got=f"{sizes[name]} records"))
        if not (math.isfinite(weight) and weight >= 0):
            problems.append(WEIGHT.at(where, got=str(weight)))
    if not any(weight > 0 for weight in weights.values()):
        problems.append(WEIGHT.at("data weight of all sources", got="none above 0"))
    return problems
