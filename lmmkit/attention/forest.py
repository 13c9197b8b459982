"""The labelled forest: packed rows as nodes of trees, and the rule of which row attends to which.

Two integers per row, `enter` and `leave`, define the rule:

    row q attends to row k   iff   enter[k] <= enter[q] < leave[k]

Depth-first numbering gives each row a distinct `enter`; `leave` is the end of its subtree. Packed
documents are trees. A prefix shared by several views is the common trunk of a tree. Rows with equal
`enter` see each other (a bidirectional block).
The order of rows in memory has no meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Rows = np.ndarray  # int64 row numbers


def expand(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Returns the row numbers of the ranges `start[i]` to `start[i] + length[i]`, concatenated."""
    ends = np.cumsum(length)
    return np.repeat(start - ends + length, length) + np.arange(ends[-1] if len(ends) else 0)


class Runs(NamedTuple):
    """Holds runs: contiguous rows with the same `leave`, listed in the order of `enter`.

    Run i is the rows `start[i]` to `stop[i]`. They all see each other if `full[i]` (equal `enter`), else
    they see causally. `see[i, j]`: the rows of run i see all rows of run j, where j is not i.
    """

    start: np.ndarray
    stop: np.ndarray
    full: np.ndarray
    see: np.ndarray


@dataclass(frozen=True)
class Forest:
    """Describes T packed rows. `enter_T`, `leave_T`: the rule; `pos_T`: rotary position. int32, on host."""

    enter_T: Tensor
    leave_T: Tensor
    pos_T: Tensor

    def __len__(self) -> int:
        return len(self.enter_T)

    @cached_property
    def runs(self) -> Runs:
        """Returns the runs of the forest, without cuts."""
        return runs(self)

    def see(self) -> Tensor:
        """Returns bool [T, T]: the rule in one line, the reference for everything below."""
        enter, leave = self.enter_T, self.leave_T
        return (enter[None, :] <= enter[:, None]) & (enter[:, None] < leave[None, :])


def runs(forest: Forest, cut_T: np.ndarray | None = None) -> Runs:
    """Returns the runs of the forest, cut before the rows `cut_T` (bool). Rows may have any order; the fewer
    contiguous ranges the rows of a path form, the fewer runs there are."""
    enter, leave = forest.enter_T.numpy(), forest.leave_T.numpy()
    order = np.argsort(enter, kind="stable")
    e, stop = enter[order], leave[order]
    first = _starts(e, stop)
    first[1:] |= np.diff(order) != 1
    if cut_T is not None:
        first |= cut_T[order]
    starts = np.flatnonzero(first)
    ends = np.append(starts, len(order))[1:]
    first_enter, last_enter, leaves = e[starts], e[ends - 1], stop[starts]
    see = (last_enter[None] <= first_enter[:, None]) & (first_enter[:, None] < leaves[None])
    np.fill_diagonal(see, False)
    full = (ends - starts > 1) & (first_enter == last_enter)
    return Runs(order[starts], order[starts] + ends - starts, full, see)


def arrange(forest: Forest, cut_T: np.ndarray) -> tuple[Forest, Rows]:
    """Reorders the runs of a forest, cut before the rows `cut_T`, for fast kernel calls.

    The order is by level, siblings together, longest first. Runs of equal length are then at equal
    distances, so a call on all of them reads a strided view of memory without a copy.

    Returns:
        The forest, and the new row number of each old row.
    """
    found = runs(forest, cut_T)
    length, level = found.stop - found.start, found.see.sum(1)
    parent = np.where(level > 0, len(length) - 1 - found.see[:, ::-1].argmax(1), 0) if len(length) else level
    rank, ordered = np.zeros(len(length), np.int64), np.empty(0, np.int64)
    for depth in range(level.max(initial=-1) + 1):
        here = np.flatnonzero(level == depth)
        here = here[np.lexsort((-length[here], rank[parent[here]]))]
        rank[here] = np.arange(len(here))
        ordered = np.append(ordered, here)
    length = length[ordered]
    new = np.empty(len(forest), np.int64)
    new[expand(found.start[ordered], length)] = np.arange(len(new))
    enter, leave, pos = (np.empty(len(new), np.int32) for _ in range(3))
    for to, from_ in zip((enter, leave, pos), (forest.enter_T, forest.leave_T, forest.pos_T), strict=True):
        to[new] = from_.numpy()
    return make(enter, leave, pos), new


def _starts(enter: np.ndarray, leave: np.ndarray) -> np.ndarray:
    """Returns bool [T], in the order of `enter`: true where a run begins."""
    new = np.ones(len(enter), bool)
    same = enter[1:] == enter[:-1]
    block = np.zeros(len(enter), bool)
    block[1:] |= same
    block[:-1] |= same
    ends = np.zeros(max(enter.max(initial=0), leave.max(initial=0)) + 1, bool)
    ends[leave] = True  # a row of a block may have a smaller `leave` than the others
    new[1:] = (leave[1:] != leave[:-1]) | (block[1:] != block[:-1]) | (block[1:] & ~same) | ends[enter[1:]]
    return new


def roots(lengths: Sequence[int]) -> Forest:
    """Returns the forest of packed documents: one causal tree each, one after the other in memory."""
    n = np.asarray(lengths, np.int64)
    ends = np.cumsum(n)
    total = int(ends[-1]) if len(n) else 0
    enter = np.arange(total)
    return make(enter, np.repeat(ends, n), enter - np.repeat(ends - n, n))


def blocks(lengths: Sequence[int] | np.ndarray) -> Forest:
    """Returns the forest of packed images: the rows of each see each other, one image after the other in memory.

    No block begins at a number where another ends, so that each is one run.
    """
    enter = np.repeat(2 * np.arange(len(lengths)), np.asarray(lengths, np.int64))
    return make(enter, enter + 1, np.zeros(len(enter)))


def make(enter: np.ndarray, leave: np.ndarray, pos: np.ndarray) -> Forest:
    """Returns the forest with these integer arrays."""
    return Forest(*(torch.from_numpy(np.ascontiguousarray(a, np.int32)) for a in (enter, leave, pos)))


def unshared(lengths: Sequence[int]) -> tuple[Forest, list[Rows]]:
    """Returns one tree per sequence, and the rows of each sequence: `grow` without sharing."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return roots(lengths), [np.arange(end - n, end) for n, end in zip(lengths, ends, strict=True)]


def grow(groups: Sequence[Sequence[Rows]], *, min_shared: int = 1) -> tuple[Forest, list[Rows]]:
    """Merges the longest common prefixes of each group's sequences.

    Args:
        groups: one list of sequences per sample; a sequence is int64 keys, equal keys = equal rows.
        min_shared: a common prefix of fewer rows than this is not shared.

    Returns:
        The forest, with rows in depth-first order, and for each sequence, group by group, the row of
        each of its positions. A shared row occurs in several sequences.
    """
    grower = _Grower(min_shared)
    paths: list[Rows] = []
    for sequences in groups:
        grower.found = {}
        grower.put(list(enumerate(sequences)), 0, np.empty(0, np.int64))
        paths += [grower.found[i] for i in range(len(sequences))]
    leave = np.concatenate([*grower.leave, np.empty(0, np.int64)])
    pos = np.concatenate([*grower.pos, np.empty(0, np.int64)])
    return make(np.arange(len(leave)), leave, pos), paths


class _Grower:
    """Collects the rows of the forest, depth first, and the path of each sequence of a group (`found`)."""

    def __init__(self, min_shared: int):
        self.min_shared = min_shared
        self.n = 0
        self.leave: list[np.ndarray] = []
        self.pos: list[np.ndarray] = []
        self.found: dict[int, Rows] = {}

    def put(self, members: list[tuple[int, Rows]], base: int, path: Rows) -> None:
        """Adds sequences that agree on their first `base` rows, which are the rows `path`."""
        ending = [i for i, keys in members if len(keys) == base]
        for i in ending:
            self.found[i] = path
        heads: dict[int, list[tuple[int, Rows]]] = {}
        for i, keys in members:
            if len(keys) > base:
                heads.setdefault(int(keys[base]), []).append((i, keys))
        for branch in heads.values():
            self._branch(branch, base, path)

    def _branch(self, members: list[tuple[int, Rows]], base: int, path: Rows) -> None:
        end = _common(members, base)
        if len(members) > 1 and end - base < self.min_shared:
            self._split(members, base, end, path)
            return
        at = self.n
        rows = np.arange(at, at + end - base)
        self.n += end - base
        slot = len(self.leave)
        self.leave.append(rows)  # placeholder until the subtree is known
        self.pos.append(np.arange(base, end))
        self.put(members, end, np.concatenate([path, rows]))
        self.leave[slot] = np.full(end - base, self.n)

    def _split(self, members: list[tuple[int, Rows]], base: int, end: int, path: Rows) -> None:
        """Handles a prefix too short to share: splits the members by the key that follows it."""
        ways: dict[int | tuple[int], list[tuple[int, Rows]]] = {}
        for i, keys in members:
            way = int(keys[end]) if len(keys) > end else (i,)  # a sequence that ends here shares with none
            ways.setdefault(way, []).append((i, keys))
        for way in ways.values():
            self._branch(way, base, path)


def _common(members: list[tuple[int, Rows]], base: int) -> int:
    first = members[0][1]
    end = min(len(keys) for _, keys in members)
    for _, keys in members[1:]:
        apart = np.flatnonzero(keys[base:end] != first[base:end])
        end = base + int(apart[0]) if len(apart) else end
    return end
