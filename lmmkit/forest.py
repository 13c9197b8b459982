"""The one structure: packed rows as nodes of trees, and the rule of who sees whom.

Two integers a row, `enter` and `leave`, say everything:

    row q sees row k   iff   enter[k] <= enter[q] < leave[k]

Depth-first numbering gives every row its own `enter`; `leave` is where its subtree ends. Packed
documents are trees; a prefix shared by several views is a trunk; rows with equal `enter` see each
other (a bidirectional block).
The order of rows in memory carries no meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Rows = np.ndarray  # int64 row numbers


class Run(NamedTuple):
    """A stretch of rows with one `leave`, in the order of `enter`: the unit of a flash call.

    `below` are the rows that see the whole run and are not in it. `full`: the rows see each other
    (equal `enter`), else causally.
    """

    rows: Rows
    below: Rows
    parent: int
    depth: int
    full: bool


class Call(NamedTuple):
    """One attention call: query rows `q[i]` see key rows `k[i]`, causally or all of them.

    `run[i]` numbers the run whose rows the keys are. `own`: the queries are those rows themselves;
    every row of the forest stands in exactly one own segment.
    """

    q: tuple[Rows, ...]
    k: tuple[Rows, ...]
    run: tuple[int, ...]
    causal: bool
    own: bool


@dataclass(frozen=True)
class Forest:
    """T packed rows. `enter_T`, `leave_T`: the rule; `pos_T`: rotary position. All int32, host."""

    enter_T: Tensor
    leave_T: Tensor
    pos_T: Tensor

    def __len__(self) -> int:
        return len(self.enter_T)

    def see(self) -> Tensor:
        """bool [T, T]: the rule in one line, the plain twin of everything below."""
        enter, leave = self.enter_T, self.leave_T
        return (enter[None, :] <= enter[:, None]) & (enter[:, None] < leave[None, :])

    def runs(self, cut: Tensor | None = None) -> list[Run]:
        """Runs in the order of `enter`. `cut` (bool [T]) begins a new run at these rows."""
        enter, leave = self.enter_T.numpy(), self.leave_T.numpy()
        order = np.argsort(enter, kind="stable")
        e, stop = enter[order], leave[order]
        if len(order) == 0:
            return []
        first = _starts(e, stop)
        if cut is not None:
            first |= cut.numpy()[order]
        starts = np.flatnonzero(first)
        ends = np.append(starts[1:], len(order))
        block_starts = np.searchsorted(e, e[starts], side="left")
        block_ends = np.searchsorted(e, stop[starts], side="left")
        full = (ends - starts > 1) & (e[starts] == e[ends - 1])
        runs: list[Run] = []
        open_: list[int] = []
        for top, start, end, last, is_full in zip(block_starts, starts, ends, block_ends, full, strict=True):
            while open_ and stop[starts[open_[-1]]] <= e[start]:
                open_.pop()
            parent = open_[-1] if open_ else -1
            depth = runs[parent].depth + 1 if open_ else 0
            below = np.concatenate([order[top:start], order[end:last]])  # top < start in a block that is cut
            runs.append(Run(order[start:end], below, parent, depth, bool(is_full)))
            open_.append(len(runs) - 1)
        return runs

    def calls(
        self, cut: Tensor | None = None, read: Tensor | None = None
    ) -> tuple[tuple[Call, ...], list[Run]]:
        """The flash plan: the causal self call over all runs, then one call a tree level.

        The softmax over all a row sees is the log-sum-exp merge of its calls. Bidirectional runs
        take a self call of their own. With `read` (bool [T]) the queries are those rows, and
        what stands between them in their runs.
        """
        runs = self.runs(cut)
        asks = np.ones(len(self), bool) if read is None else read.numpy().copy()
        if read is not None:
            runs = self.runs(_cut_at_first(runs, asks, cut))
            for run in runs:
                asks[run.rows] = asks[run.rows].any()
        plans = []
        for full in (False, True):
            own = [i for i, run in enumerate(runs) if run.full is full and asks[run.rows[0]]]
            if own:
                rows = tuple(runs[i].rows for i in own)
                plans.append(Call(rows, rows, tuple(own), causal=not full, own=True))
        for depth in range(1 + max((run.depth for run in runs), default=-1)):
            level = [i for i, r in enumerate(runs) if r.depth == depth and asks[r.below].any()]
            if level:
                q = tuple(runs[i].below[asks[runs[i].below]] for i in level)
                k = tuple(runs[i].rows for i in level)
                plans.append(Call(q, k, tuple(level), causal=False, own=False))
        return tuple(plans), runs


def _cut_at_first(runs: Sequence[Run], asks: np.ndarray, cut: Tensor | None) -> Tensor:
    """`cut`, and a cut where the first row that asks stands in each run."""
    out = np.zeros(len(asks), bool) if cut is None else cut.numpy().copy()
    for run in runs:
        if not run.full and asks[run.rows].any():
            out[run.rows[asks[run.rows].argmax()]] = True
    return torch.from_numpy(out)


def _starts(enter: np.ndarray, leave: np.ndarray) -> np.ndarray:
    """bool [T], in the order of `enter`: where a run begins."""
    new = np.ones(len(enter), bool)
    same = enter[1:] == enter[:-1]
    block = np.zeros(len(enter), bool)
    block[1:] |= same
    block[:-1] |= same
    new[1:] = (leave[1:] != leave[:-1]) | (block[1:] != block[:-1]) | (block[1:] & ~same)
    return new


def roots(lengths: Sequence[int]) -> Forest:
    """Packed documents: one causal root each, rows one after the other."""
    n = np.asarray(lengths, np.int64)
    ends = np.cumsum(n)
    total = int(ends[-1]) if len(n) else 0
    enter = np.arange(total)
    return make(enter, np.repeat(ends, n), enter - np.repeat(ends - n, n))


def make(enter: np.ndarray, leave: np.ndarray, pos: np.ndarray) -> Forest:
    """A forest of these integer arrays."""
    return Forest(*(torch.from_numpy(np.ascontiguousarray(a, np.int32)) for a in (enter, leave, pos)))


def grow(
    groups: Sequence[Sequence[Rows]], *, share: bool = True, worth: int = 1
) -> tuple[Forest, list[Rows]]:
    """Merges the longest common prefixes of each group's sequences.

    Args:
        groups: one list of sequences a sample; a sequence is int64 keys, equal keys = equal rows.
        share: merge at all; without it every sequence is a tree of its own (the plain twin).
        worth: a common prefix of fewer rows is not worth a branching and stays unshared.

    Returns:
        The forest, rows in depth-first order, and for every sequence, group by group, the row of
        each of its places. A shared row stands in several of these.
    """
    grower = _Grower(worth if share else 1 << 62)
    paths: list[Rows] = []
    for sequences in groups:
        grower.found = {}
        grower.put(list(enumerate(sequences)), 0, np.empty(0, np.int64))
        paths += [grower.found[i] for i in range(len(sequences))]
    leave = np.concatenate([*grower.leave, np.empty(0, np.int64)])
    pos = np.concatenate([*grower.pos, np.empty(0, np.int64)])
    return make(np.arange(len(leave)), leave, pos), paths


class _Grower:
    def __init__(self, worth: int):
        self.worth = worth
        self.n = 0
        self.leave: list[np.ndarray] = []
        self.pos: list[np.ndarray] = []
        self.found: dict[int, Rows] = {}

    def put(self, members: list[tuple[int, Rows]], base: int, path: Rows) -> None:
        """Adds sequences that agree on their first `base` rows, which stand at `path`."""
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
        if len(members) > 1 and end - base < self.worth:
            self._split(members, base, end, path)
            return
        at = self.n
        rows = np.arange(at, at + end - base)
        self.n += end - base
        slot = len(self.leave)
        self.leave.append(rows)  # held open until the subtree is known
        self.pos.append(np.arange(base, end))
        self.put(members, end, np.concatenate([path, rows]))
        self.leave[slot] = np.full(end - base, self.n)

    def _split(self, members: list[tuple[int, Rows]], base: int, end: int, path: Rows) -> None:
        """A prefix too short to share: those that part right after it go separate ways."""
        ways: dict[int, list[tuple[int, Rows]]] = {}
        for i, keys in members:
            ways.setdefault(int(keys[end]) if len(keys) > end else -(1 << 62) - i, []).append((i, keys))
        if len(ways) == 1 or self.worth >= 1 << 62:
            ways = {i: [(i, keys)] for i, keys in members}
        for way in ways.values():
            self._branch(way, base, path)


def _common(members: list[tuple[int, Rows]], base: int) -> int:
    first = members[0][1]
    end = min(len(keys) for _, keys in members)
    for _, keys in members[1:]:
        apart = np.flatnonzero(keys[base:end] != first[base:end])
        end = base + int(apart[0]) if len(apart) else end
    return end
