"""Partial attentions over the calls of a forest, merged by log-sum-exp, and the attention mass.

Where mass is asked for, the keys of a call are either all key rows or all other rows. So the merge
weight of the parts over key rows IS the mass: m = exp(lse_key - lse). Its gradient g only shifts the
row term D = sum(dO * O) of the softmax backward: D - g (1 - m) in parts over key rows, D + g m in the
others. A flash backward reads O only to compute D from (dO, O), so it is handed an O that gives the D it
should use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmmkit.attention.forest import expand
from lmmkit.attention.interface import (
    ALL,
    AttentionFn,
    Heads,
    Rotary,
    apply_rope_,
    grouped,
    moved,
    ungrouped,
)
from lmmkit.attention.key_maps import MapReader, map_readers
from lmmkit.attention.schedule import AttentionSpec

UNSEEN = 1e30  # the log-sum-exp of a padding row: its softmax weights become exact zeros


class Kernel(Protocol):
    """Defines the interface of an attention kernel on B dense sequences. `grouped`: keys and values may have
    fewer heads than queries; else they are repeated for it."""

    grouped: ClassVar[bool]

    def forward(self, q_BNHK: Tensor, k_BMHK: Tensor, v_BMHK: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (out_BNHK, lse_BNH), lse in float32 or wider."""
        ...

    def backward(
        self, d: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the gradients of q, k, v from `d`, the gradient of the output [B, N, H, K]. The row term is
        sum(d * out) for any given `out`."""
        ...


class StridedRows(NamedTuple):
    """Describes B ranges of n rows, `step` apart: a strided view of memory."""

    start: int
    step: int
    count: int
    n: int

    def of(self, x_T: Tensor) -> Tensor:
        """Selects its rows: [T, ...] -> [B, N, ...]."""
        rows = x_T[self.start : self.start + self.step * (self.count - 1) + self.n]
        return rows.unfold(0, self.n, self.step).movedim(-1, 1)

    def lse_of(self, lse_TH: Tensor) -> Tensor:
        """Returns the log-sum-exp of its rows, [B, N, H]."""
        return self.of(lse_TH)

    def put(self, x_T: Tensor, part: Tensor) -> None:
        """Writes [B, N, ...] to its rows."""
        self.of(x_T).copy_(part)

    def add(self, x_T: Tensor, part: Tensor) -> None:
        """Adds [B, N, ...] to its rows."""
        self.of(x_T).add_(part)


class IndexedRows(NamedTuple):
    """Describes rows by index, `index_BN`, none of them twice: `row_N` is the list of them. Padding has index
    0; `pad_BN1` is true there, and `real` lists the other places. Both are None where there is no padding."""

    index_BN: Tensor
    row_N: Tensor
    pad_BN1: Tensor | None = None
    real: tuple[Tensor, Tensor] | None = None

    def of(self, x_T: Tensor) -> Tensor:
        """Selects its rows: [T, ...] -> [B, N, ...]."""
        return x_T[self.index_BN]

    def lse_of(self, lse_TH: Tensor) -> Tensor:
        """Returns the log-sum-exp of its rows, [B, N, H], with `UNSEEN` at padding."""
        lse_BNH = self.of(lse_TH)
        return lse_BNH if self.pad_BN1 is None else lse_BNH.masked_fill_(self.pad_BN1, UNSEEN)

    def put(self, x_T: Tensor, part: Tensor) -> None:
        """Writes [B, N, ...] to its rows."""
        x_T[self.row_N] = self._real(part)

    def add(self, x_T: Tensor, part: Tensor) -> None:
        """Adds [B, N, ...] to its rows."""
        x_T[self.row_N] = x_T[self.row_N].add_(self._real(part))

    def _real(self, x_BN: Tensor) -> Tensor:
        return x_BN.flatten(0, 1) if self.real is None else x_BN[self.real]


RowSet = StridedRows | IndexedRows


def row_set(start: np.ndarray, n: np.ndarray, of: np.ndarray, device: torch.device) -> RowSet:
    """Returns the rows of B sequences. Range i: the `n[i]` rows from `start[i]`, in sequence `of[i]`."""
    if (start[:-1] + n[:-1] == start[1:]).all() and not of[-1]:
        return StridedRows(int(start[0]), int(n.sum()), 1, int(n.sum()))
    steps = np.diff(start)
    if (np.diff(of) == 1).all() and (n == n[0]).all() and (steps == steps[:1]).all() and steps[:1] >= n[0]:
        return StridedRows(int(start[0]), int(steps[0]), len(n), int(n[0]))
    lengths_B = np.bincount(of, n).astype(np.int64)
    real_BN = np.arange(lengths_B.max()) < lengths_B[:, None]
    index_BN, row_N = np.zeros(real_BN.shape, np.int64), expand(start, n)
    index_BN[real_BN] = row_N
    index, row = moved(index_BN, device), moved(row_N, device)
    if real_BN.all():
        return IndexedRows(index, row)
    sequence_N, place_N = (moved(each, device) for each in real_BN.nonzero())
    return IndexedRows(index, row, moved(~real_BN[..., None], device), (sequence_N, place_N))


@dataclass(frozen=True)
class PartialAttention:
    """Describes one partial attention: query rows `q`, numbered among the output rows, onto rows `k` of all.

    `own`: the keys belong to the run of the queries and every output row is a query of exactly one
    such part. `key`: the keys are rows whose mass is read.
    """

    q: RowSet
    k: RowSet
    own: bool
    key: bool
    kernel: Kernel

    def keys(self, x_TGK: Tensor, heads: int) -> Tensor:
        """Returns the keys or the values of its rows, with the heads that its kernel takes."""
        x_BMGK = self.k.of(x_TGK)
        return x_BMGK if self.kernel.grouped else grouped(x_BMGK, heads)


def attention_from_parts(
    parts: Sequence[PartialAttention], spec: AttentionSpec, device: torch.device
) -> AttentionFn:
    """Returns the attention function for these parts of `spec`, which must start with the `own` ones."""
    rows = ALL if spec.row_W is None else moved(spec.row_W, device)
    row_R = spec.row_R.numpy()
    place_R = place_A = moved(spec.places(row_R), device)
    if spec.maps:
        row_A = np.unique(np.concatenate([row_R, *(each.row_Q for each in spec.maps)]))
        place_A = moved(spec.places(row_A), device)
    return AttentionFn(rows, _Plan(parts, rows, place_R, place_A), map_readers(spec.maps, spec.row_W, device))


@dataclass(frozen=True)
class _Plan:
    """Holds the parts of one batch, the output rows, and the indices in them of the rows `row_R`, and of these with
    all rows whose weights on chosen keys are read, none twice."""

    parts: Sequence[PartialAttention]
    rows: Tensor | slice
    place_R: Tensor
    place_A: Tensor

    @property
    def all_rows(self) -> bool:
        """Returns whether all rows are output rows."""
        return isinstance(self.rows, slice)

    def __call__(self, qkv_TC: Tensor, heads: Heads, rotary: Rotary, *maps: MapReader) -> tuple[Tensor, ...]:
        return _Merged.apply(qkv_TC, *rotary, heads, self, maps)


class _Merged(torch.autograd.Function):
    """Applies RoPE, merges partial attentions by log-sum-exp and returns the mass, see the module docstring, and
    the weights on chosen keys, see `key_maps.py`.

    RoPE is applied to the projection in place, and its gradient is one buffer. If another op saved the
    old values, autograd's version check raises.
    """

    @staticmethod
    def forward(
        ctx, qkv_TC: Tensor, cos: Tensor, sin: Tensor, heads: Heads, plan: _Plan, maps: Sequence[MapReader]
    ):
        ctx.set_materialize_grads(False)
        qkv_TC = qkv_TC.detach()
        apply_rope_(heads.queries_and_keys(qkv_TC), cos, sin)
        q, k, v = heads.split(qkv_TC)
        q = q[plan.rows]
        wide = torch.promote_types(q.dtype, torch.float32)
        out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=wide)
        key_lse = torch.full_like(lse, -torch.inf)
        for part in plan.parts:
            keys = [part.keys(x, heads.q) for x in (k, v)]
            part_out, part_lse = part.kernel.forward(part.q.of(q), *keys)
            if part.key:
                part.q.put(key_lse, torch.logaddexp(part.q.of(key_lse), part_lse))
            if not part.own:
                part_out, part_lse = merge_partials(part.q.of(out), part.q.of(lse), part_out, part_lse)
            part.q.put(out, part_out)
            part.q.put(lse, part_lse)
        mass_RH = (key_lse[plan.place_R] - lse[plan.place_R]).exp()
        ctx.save_for_backward(qkv_TC, cos, sin, out, lse, mass_RH)
        ctx.heads, ctx.plan, ctx.maps = heads, plan, maps
        return out.flatten(1), mass_RH.mean(-1), *(each.read(q, k, lse) for each in maps)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_WC, d_mass_R, *d_maps):
        qkv_TC, cos, sin, out, lse, mass_RH = ctx.saved_tensors
        heads, plan = ctx.heads, ctx.plan
        q, k, v = heads.split(qkv_TC)
        q = q[plan.rows]
        d = torch.zeros_like(out) if d_WC is None else d_WC.unflatten(1, (-1, heads.size))
        out_rest = out_key = out
        chosen = [
            gradient
            for each, d_QJ in zip(ctx.maps, d_maps, strict=True)
            if d_QJ is not None
            for gradient in each.gradients(d_QJ, q, k, lse)
        ]
        added = [[(each.place_R, each.term_RH) for each in chosen] for _ in ("rest", "key")]
        if d_mass_R is not None and len(plan.place_R):
            for terms, term in zip(added, mass_row_terms(plan.place_R, mass_RH, d_mass_R), strict=True):
                terms.append(term)
        if any(added):
            place_A = plan.place_A if ctx.maps else plan.place_R
            d, (out_rest, out_key) = hand_over(d, out, place_A, added)
        d_qkv_TC = torch.empty_like(qkv_TC) if plan.all_rows else torch.zeros_like(qkv_TC)
        d_q, d_k, d_v = heads.split(d_qkv_TC)
        to_q = d_q if plan.all_rows else torch.empty_like(q)
        for part in plan.parts:
            keys = [part.keys(x, heads.q) for x in (k, v)]
            grads = part.kernel.backward(
                part.q.of(d), part.q.of(q), *keys, part.q.of(out_key if part.key else out_rest),
                part.q.lse_of(lse),
            )  # fmt: skip
            (part.q.put if part.own else part.q.add)(to_q, grads[0])
            write = part.k.put if part.own and plan.all_rows else part.k.add
            for to, grad in zip((d_k, d_v), grads[1:], strict=True):
                write(to, ungrouped(grad, heads.kv))
        for each in chosen:
            to_q.index_add_(0, each.place_R, each.q_RHK.to(to_q))
            d_k.index_add_(0, each.key_J, each.k_JGK.to(d_k))
        if not plan.all_rows:
            d_q[plan.rows] = to_q
        apply_rope_(heads.queries_and_keys(d_qkv_TC), cos, -sin)
        return d_qkv_TC, None, None, None, None, None


def merge_partials(a: Tensor, lse_a: Tensor, b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Merges two partial attentions [..., K] of the same queries, with log-sum-exps [...], into one."""
    lse = torch.logaddexp(lse_a, lse_b)
    out = a * (lse_a - lse).exp_()[..., None]
    return out.addcmul_(b, (lse_b - lse).exp_()[..., None]).to(a), lse


def mass_row_terms(row_R: Tensor, mass_RH: Tensor, d_mass_R: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
    """Returns what the gradient of the mass adds to the row terms: in parts over other rows, over key rows."""
    d_RH = (d_mass_R / mass_RH.shape[1])[:, None].to(mass_RH)
    return (row_R, d_RH * mass_RH), (row_R, d_RH * (mass_RH - 1))


def hand_over(
    d: Tensor, out: Tensor, row_A: Tensor, added: Sequence[Sequence[tuple[Tensor, Tensor]]]
) -> tuple[Tensor, list[Tensor]]:
    """Returns `d`, and for each key set the output to hand to its kernels in place of `out`.

    The row term sum(d * handed) is sum(d * out) plus all that is added. The handed output is that row term
    along d / |d|, so it is as exact as its dtype: an addition to `out` itself is lost in bfloat16 where it
    is small beside `out`.

    If the output of a row is not read, `d` is zero there and cannot carry a row term. Such a `d` is set to
    1e-15 of what is added: too small to change a gradient, large enough to carry the row term.

    Args:
        d: the gradient of the output, [W, H, K].
        out: the output, [W, H, K].
        row_A: the rows that are added to, none twice.
        added: for each key set, what its readers add: (rows, some of `row_A`; row terms [rows, H]).
    """
    d_AHK, wide = d[row_A], torch.promote_types(d.dtype, torch.float32)
    sums = [_summed(terms, out, wide)[row_A, :, None] for terms in added]
    norm_AH1 = torch.linalg.vector_norm(d_AHK, dim=-1, keepdim=True, dtype=wide)
    least_AH1 = 1e-15 * torch.stack(sums).abs().amax(0)
    dead_AH1 = (norm_AH1 <= least_AH1) & (least_AH1 > 0)
    d_AHK = d_AHK.masked_fill(dead_AH1, 0)
    d_AHK[..., :1] = torch.where(dead_AH1, least_AH1.to(d), d_AHK[..., :1])
    norm_AH1 = torch.where(dead_AH1, d_AHK[..., :1].to(wide), norm_AH1)
    norm_AH1 = torch.where(norm_AH1 == 0, 1, norm_AH1)
    way_AHK = d_AHK.to(wide) / norm_AH1
    own_AH1 = torch.linalg.vecdot(way_AHK, out[row_A].to(wide))[..., None]
    handed = [(way_AHK * (own_AH1 + sum_AH1 / norm_AH1)).to(out) for sum_AH1 in sums]
    return d.index_copy(0, row_A, d_AHK), [out.index_copy(0, row_A, each) for each in handed]


def _summed(terms: Sequence[tuple[Tensor, Tensor]], out: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the sum of row terms, [W, H]."""
    total_WH = out.new_zeros(out.shape[:2], dtype=dtype)
    for row_R, term_RH in terms:
        total_WH.index_add_(0, row_R, term_RH)
    return total_WH
