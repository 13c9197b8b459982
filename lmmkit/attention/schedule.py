"""The rule of a forest as few flash calls, computed once per batch on the host and shared by all layers.

A run is a contiguous range of rows with the same `leave`. Its rows attend to each other causally, and every
row below attends to all of it. So attention is one partial call of each run onto itself, and one of its rows
onto each run above. The partial softmaxes are merged by their log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from torch import Tensor

from lmmkit.attention.forest import Forest, Runs, expand
from lmmkit.attention.key_maps import KeyMap


class Call(NamedTuple):
    """Describes S segments of one kind. A segment has one range of keys; its queries see all, or causally.

    The keys of segment s are the `m[s]` rows from `k[s]`. Query range i is the `n[i]` rows from `q[i]`
    and belongs to segment `of[i]`, in order. In a causal segment the queries are the keys.

    At `level` 0 every output row is a query once, with keys from its own run. At any level a row is a
    query at most once, and in a call it is a key at most once. `key`: the keys are rows whose mass is
    read, and some of the queries ask for it.
    """

    level: int
    causal: bool
    key: bool
    k: np.ndarray
    m: np.ndarray
    q: np.ndarray
    n: np.ndarray
    of: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Returns the number of query rows of each segment, [S]."""
        return np.bincount(self.of, self.n, len(self.k)).astype(np.int64)

    def part(self, segments: np.ndarray) -> Call:
        """Returns the call with only these segments, in this order."""
        place = np.full(len(self.k), -1)
        place[segments] = np.arange(len(segments))
        of = place[self.of]
        kept = np.argsort(of, kind="stable")[(of < 0).sum() :]
        return self._replace(
            k=self.k[segments], m=self.m[segments], q=self.q[kept], n=self.n[kept], of=of[kept]
        )


SORT, SEGMENT = 4, 6  # leading columns that identify a kind of call, and a segment


@dataclass(frozen=True)
class AttentionSpec:
    """Specifies the attention of one layer over a forest of T rows; all tensors are on the host.

    Args:
        forest: which row attends to which.
        key_T: bool, the key rows that the mass is summed over.
        row_R: query rows whose mass on those keys is returned, none twice.
        read_T: bool, rows whose states are read after the layer; None for all. Output rows: `read_T`,
            `row_R`, and all later rows of the same runs.
        maps: what else is read of the attention weights; their rows are output rows.
    """

    forest: Forest
    key_T: Tensor
    row_R: Tensor
    read_T: Tensor | None = None
    maps: tuple[KeyMap, ...] = ()

    def with_maps(self, names: Collection[Hashable]) -> AttentionSpec:
        """Returns the attention of the same rows, of whose weights only what these ask for is read."""
        kept = tuple(each for each in self.maps if each.name in names)
        if len(kept) == len(self.maps):
            return self
        narrowed = replace(self, maps=kept)
        vars(narrowed)["calls"] = self.calls  # no call depends on maps
        return narrowed

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """Returns the calls by level, those of level 0 first."""
        return tuple(_by_sort(_joined(self._segments())))

    @cached_property
    def row_W(self) -> np.ndarray | None:
        """Returns the output rows, ascending; None for all."""
        if self.read_T is None:
            return None
        return np.sort(np.concatenate([expand(c.q, c.n) for c in self.calls if c.level == 0] or [_NO_ROWS]))

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Returns the index of each of these output rows among the output rows."""
        return rows if self.row_W is None else np.searchsorted(self.row_W, rows)

    def _segments(self) -> np.ndarray:
        """Returns [S, 8], unsorted: one segment with one query range per table row.

        Columns: level, within, causal, key, k, m, q, n. `within`: the keys are in the run of the queries.
        """
        found, key, row_R = self.forest.runs, self.key_T.numpy(), np.sort(self.row_R.numpy())
        edges = np.flatnonzero(key[1:] != key[:-1]) + 1 if len(row_R) else _NO_ROWS
        key = key if len(row_R) else np.zeros_like(key)
        begin = found.start
        if self.read_T is not None:
            read_T = self.read_T.numpy().copy()
            read_T[row_R] = True
            first = _first(np.flatnonzero(read_T), found)
            begin = np.where(found.full & (first < found.stop), found.start, first)
        asks = _first(row_R, found) < found.stop
        above, levels = _above(found, begin, edges, key)
        return np.concatenate([above, _own(found, begin, asks, edges, key, 1 + levels)])


_NO_ROWS = np.empty(0, np.int64)


def _first(rows: np.ndarray, found: Runs) -> np.ndarray:
    """Returns the first of `rows` (ascending) at or after the start of each run; int64 maximum if none."""
    return np.append(rows, np.iinfo(np.int64).max)[np.searchsorted(rows, found.start)]


def _union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the sorted union. `np.union1d` hashes, which takes three times as long at these sizes."""
    both = np.sort(np.concatenate((a, b)))
    return both[np.append(True, both[1:] != both[:-1])[: len(both)]]


class _Pieces(NamedTuple):
    """Holds the pieces `start` to `stop` of runs; run i has the `count[i]` pieces from number `first[i]`."""

    start: np.ndarray
    stop: np.ndarray
    first: np.ndarray
    count: np.ndarray


def _cut(found: Runs, points: np.ndarray) -> _Pieces:
    """Cuts runs at `points`. Runs tile memory, so the points and the starts of the runs bound all pieces."""
    start = _union(found.start, points)
    stop = np.append(start, found.stop.max(initial=0))[1:]
    first = np.searchsorted(start, found.start)
    return _Pieces(start, stop, first, np.searchsorted(start, found.stop) - first)


def _above(
    found: Runs, begin: np.ndarray, edges: np.ndarray, key: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the segments of each run's rows from `begin` onto the pieces of the runs that they see, one
    level each, and the number of levels of each run."""
    pieces = _cut(found, edges)
    see = found.see & (begin < found.stop)[:, None]
    run, other = np.divmod(np.flatnonzero(see), max(len(see), 1))  # ten times as fast as np.nonzero(see)
    run, piece = np.repeat(run, pieces.count[other]), expand(pieces.first[other], pieces.count[other])
    level = 1 + np.arange(len(run)) - np.searchsorted(run, run)
    k, no = pieces.start[piece], np.zeros_like(run)
    columns = (level, no, no, key[k], k, pieces.stop[piece] - k, begin[run], found.stop[run] - begin[run])
    return np.stack(columns, 1).astype(np.int64), np.bincount(run, minlength=len(begin))


def _own(
    found: Runs, begin: np.ndarray, asks: np.ndarray, edges: np.ndarray, key: np.ndarray, level: np.ndarray
) -> np.ndarray:
    """Returns the segments of each run's rows from `begin` onto the run itself. The run is cut at `begin`
    and, if it asks for mass, at the edges. `level` is the lowest free level of each run."""
    order = np.argsort(found.start)
    of_edge = order[np.searchsorted(found.start[order], edges, side="right") - 1]
    inside = begin[begin < found.stop]
    pieces = _cut(found, _union(edges[asks[of_edge]], inside))
    read = np.flatnonzero(begin < found.stop)
    run = np.repeat(read, pieces.count[read])
    piece = expand(pieces.first[read], pieces.count[read])
    k, end = pieces.start[piece], pieces.stop[piece]
    level = level[run] + piece - pieces.first[run]
    marked, full, begin, stop = asks[run] & key[k], found.full[run], begin[run], found.stop[run]
    one, zero = np.ones_like(run), np.zeros_like(run)
    itself = np.stack((zero, one, ~full, marked, k, end - k, k, end - k), 1)[k >= begin]
    behind = np.maximum(begin, end)
    after = np.stack((level, one, zero, marked, k, end - k, behind, stop - behind), 1)[behind < stop]
    before = np.stack((level, one, zero, marked, k, end - k, begin, k - begin), 1)[full & (begin < k)]
    return np.concatenate([itself, after, before]).astype(np.int64)


def _joined(table: np.ndarray) -> np.ndarray:
    """Sorts the table, and joins contiguous queries onto the same keys into one table row."""
    table = table[np.lexsort(table.T[::-1])]
    if not len(table):
        return table
    *_, q, n = table.T
    apart = (table[1:, :SEGMENT] != table[:-1, :SEGMENT]).any(1) | (q[:-1] + n[:-1] != q[1:])
    first = np.flatnonzero(np.append(True, apart))
    joined = table[first]
    joined[:, -1] = np.add.reduceat(n, first)
    return joined


def _by_sort(table: np.ndarray) -> Iterator[Call]:
    """Yields the calls of a sorted table."""
    for rows in np.split(table, np.flatnonzero((table[1:, :SORT] != table[:-1, :SORT]).any(1)) + 1):
        if len(rows):
            new = np.append(True, (rows[1:, :SEGMENT] != rows[:-1, :SEGMENT]).any(1))
            level, _, causal, key = rows[0, :SORT].tolist()
            k, m, q, n = rows[:, SORT:].T
            yield Call(level, bool(causal), bool(key), k[new], m[new], q, n, np.cumsum(new) - 1)
