"""Attention over a forest, with the attention mass of chosen rows. The one file that knows kernels.

A backend prepares an `Attend` once a batch; all layers share it. It takes the projections of all
packed rows, turns queries and keys by their positions, and gives the rows' outputs and the mass
that each of the R asked rows puts on the key rows (mean over heads, float32), exact in value and
gradient, without an [T, T] map and in one autograd node:

The forest's runs are cut where key rows begin and end, so every partial call is onto keys of one
sort. Partial softmaxes merge by their log-sum-exp, and the merge weight of the parts over key rows
IS the mass: m = exp(lse_key - lse). Its gradient g only shifts the row term D = sum(dO * O) of the
softmax backward: D - g (1 - m) in parts over key rows, D + g m in the others. A flash backward
computes D from (dO, O) itself, so the shift goes in through the O it is handed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import pad_sequence

from lmmkit.forest import Call, Forest

Turn = tuple[Tensor, Tensor]
"""(cos, sin), each [T, 1, K / 2]: by how much each row's pairs (k, k + K / 2) are turned."""


class Heads(NamedTuple):
    """How a packed projection [T, (q + 2 kv) * size] falls into queries, keys and values."""

    q: int
    kv: int
    size: int

    def split(self, qkv_TC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of it: [T, H, K], and [T, G, K] twice."""
        qkv_TAK = qkv_TC.unflatten(-1, (-1, self.size))
        return qkv_TAK[:, : self.q], qkv_TAK[:, self.q : -self.kv], qkv_TAK[:, -self.kv :]


@dataclass(frozen=True)
class Attend:
    """(qkv_TC, heads, turn) -> (out_WC, mass_R). The projection is the call's own: it may turn it in place.

    `rows` are the W rows that come out: all, or those whose states somebody reads.
    """

    rows: Tensor | slice
    call: Callable[[Tensor, Heads, Turn], tuple[Tensor, Tensor]]

    def __call__(self, qkv_TC: Tensor, heads: Heads, turn: Turn) -> tuple[Tensor, Tensor]:
        return self.call(qkv_TC, heads, turn)


ALL = slice(None)

_log = logging.getLogger("lmmkit")

UNSEEN = 1e30  # the log-sum-exp of a padding row: its softmax weights come out as exact zeros


class Backend(Protocol):
    """One way to compute attention."""

    @property
    def name(self) -> str:
        """What a recipe calls it."""
        ...

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str:
        """Why it cannot run there; empty when it can."""
        ...

    def attend(
        self, forest: Forest, key_T: Tensor, row_R: Tensor, device: torch.device, read_T: Tensor | None = None
    ) -> Attend:
        """The attention of this forest; the mass is of rows `row_R` onto rows where `key_T`.

        With `read_T` only these rows have to come out; those of `row_R` are among them.
        """
        ...

    def dense(self, q_INHK: Tensor, k_INHK: Tensor, v_INHK: Tensor) -> Tensor:
        """Bidirectional attention within each of I equal sequences: [I, N, H, K]."""
        ...


class NoBackend(RuntimeError):
    """What was asked for cannot run; the message says of every backend why not, or that it can."""


def choose(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend of this name; `auto` is the first that can run of xformers, sdpa, eager.

    Raises `NoBackend` if it cannot run there, or if there is none of that name.
    """
    reasons = {backend.name: backend.why_not(device, dtype) for backend in _BACKENDS}
    for backend in _BACKENDS:
        if name in ("auto", backend.name) and not reasons[backend.name]:
            return backend
    said = "; ".join(f"{each}: {reason or 'can run'}" for each, reason in reasons.items())
    if name in reasons:
        raise NoBackend(f"`{name}`, which cannot run on {device} in {dtype} ({said})")
    raise NoBackend(f"`{name}`, which is no backend ({said})")


def log_choice(chosen: Backend, device: torch.device, dtype: torch.dtype) -> None:
    """One line: the backend, and why none before it."""
    better = _BACKENDS[: [backend.name for backend in _BACKENDS].index(chosen.name)]
    reasons = [f"{backend.name}: {backend.why_not(device, dtype) or 'not asked for'}" for backend in better]
    _log.info("attention: %s%s", chosen.name, f" ({'; '.join(reasons)})" if reasons else "")


def backends() -> Sequence[Backend]:
    """All backends, best first."""
    return _BACKENDS


def grouped(x_THK: Tensor, heads: int) -> Tensor:
    """Key/value heads repeated to `heads` query heads, on the last but one dimension."""
    groups = x_THK.shape[-2]
    return x_THK if heads == groups else x_THK.repeat_interleave(heads // groups, dim=-2)


def turned(qkv_TC: Tensor, heads: Heads, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
    """(q_THK, k_TGK, v_TGK), queries and keys turned to their positions; the plain twin of `_turn_`."""
    q, k, v = heads.split(qkv_TC)
    return _turned(q, *turn), _turned(k, *turn), v


def _turned(x_THK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x_THK.chunk(2, -1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1).to(x_THK)


def _turn_(x_THK: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turns where it lies; with `-sin`, back."""
    left, right = x_THK.chunk(2, -1)
    new_left, new_right = left * cos, right * cos
    new_left -= right * sin
    new_right += left * sin
    left.copy_(new_left)
    right.copy_(new_right)


# ---------------------------------------------------------------- eager: the plain twin


@dataclass(frozen=True)
class Eager:
    """Masked softmax with the whole map. Slow and plain: what the others are compared with."""

    name: str = "eager"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str:
        return ""

    def attend(
        self, forest: Forest, key_T: Tensor, row_R: Tensor, device: torch.device, read_T: Tensor | None = None
    ) -> Attend:
        rows = ALL if read_T is None else read_T.index_fill(0, row_R, True).nonzero()[:, 0]
        place_R = torch.searchsorted(torch.arange(len(forest))[rows], row_R).to(device)
        see_WT, key_T = forest.see()[rows].to(device), key_T.to(device)
        rows = rows if isinstance(rows, slice) else rows.to(device)

        def attend(qkv_TC: Tensor, heads: Heads, turn: Turn) -> tuple[Tensor, Tensor]:
            q_THK, k_TGK, v_TGK = turned(qkv_TC, heads, turn)
            weight_HWT = attention_map(q_THK[rows], k_TGK, see_WT)
            out_WHK = torch.einsum("hqk,khd->qhd", weight_HWT.to(v_TGK), grouped(v_TGK, heads.q))
            mass_R = weight_HWT[:, place_R][..., key_T].sum(-1).mean(0)
            return out_WHK.flatten(1), mass_R

        return Attend(rows, attend)

    def dense(self, q_INHK: Tensor, k_INHK: Tensor, v_INHK: Tensor) -> Tensor:
        score = torch.einsum("iqhd,ikhd->ihqk", q_INHK, k_INHK) * q_INHK.shape[-1] ** -0.5
        return torch.einsum("ihqk,ikhd->iqhd", _softmax(score).to(v_INHK), v_INHK)


def attention_map(q_QHK: Tensor, k_TGK: Tensor, see_QT: Tensor) -> Tensor:
    """The softmax weights themselves, [H, Q, T], float32 or wider: for pictures and twins."""
    score = torch.einsum("qhd,khd->hqk", q_QHK, grouped(k_TGK, q_QHK.shape[1])) * q_QHK.shape[-1] ** -0.5
    return _softmax(score.masked_fill(~see_QT, -torch.inf))


def _softmax(score: Tensor) -> Tensor:
    return score.softmax(-1, dtype=torch.promote_types(score.dtype, torch.float32))


# ---------------------------------------------------------------- merged partial calls


def ungrouped(x_THK: Tensor, groups: int) -> Tensor:
    """Gradients of repeated key/value heads, summed: the way back of `grouped`."""
    heads = x_THK.shape[-2]
    return x_THK if heads == groups else x_THK.unflatten(-2, (groups, heads // groups)).sum(-2)


class Part(Protocol):
    """One partial attention: rows that come out onto some of the keys they see."""

    @property
    def row_Q(self) -> Tensor:
        """The query rows, among those that come out."""
        ...

    @property
    def key(self) -> bool:
        """Whether these keys are the ones whose mass is read."""
        ...

    @property
    def own(self) -> bool:
        """See `forest.Call`."""
        ...

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Queries of the rows that come out, keys and values of all -> (out_QHK, lse_QH), lse in
        float32 or wider."""
        ...

    def backward(
        self, d: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, to: _Grads
    ) -> None:
        """Adds the gradients of q, k, v to `to`; `d`, `out`, `lse` are of the rows that come out."""
        ...


class _Grads(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor


@dataclass(frozen=True)
class _Plan:
    """What one batch's calls are: the parts, own ones first; the rows that come out; those of them
    whose mass is read."""

    parts: Sequence[Part]
    rows: Tensor | slice
    place_R: Tensor

    def __call__(self, qkv_TC: Tensor, heads: Heads, turn: Turn) -> tuple[Tensor, Tensor]:
        return _Merged.apply(qkv_TC, *turn, heads, self)


class _Merged(torch.autograd.Function):
    """Turning, partial attentions merged by log-sum-exp, and their mass; see the file head.

    The projection is turned where it lies and has one gradient buffer. Its values from before are
    nobody's: had somebody saved them, autograd would see by their version that they are gone.
    """

    @staticmethod
    def forward(ctx, qkv_TC: Tensor, cos: Tensor, sin: Tensor, heads: Heads, plan: _Plan):
        ctx.set_materialize_grads(False)
        qkv_TC = qkv_TC.detach()
        q, k, v = heads.split(qkv_TC)
        _turn_(q, cos, sin)
        _turn_(k, cos, sin)
        q = q[plan.rows]
        wide = torch.promote_types(q.dtype, torch.float32)
        out, lse = q.new_empty(q.shape), q.new_full(q.shape[:2], -torch.inf, dtype=wide)
        key_lse = torch.full_like(lse, -torch.inf)
        for part in plan.parts:
            part_out, part_lse = part.forward(q, k, v)
            rows = part.row_Q
            if not part.own:  # own parts come first and hold every row once
                before = lse[rows]
                after = torch.logaddexp(before, part_lse)
                share, part_share = (before - after).exp()[..., None], (part_lse - after).exp()[..., None]
                part_out, lse[rows] = (share * out[rows] + part_share * part_out).to(out), after
            else:
                lse[rows] = part_lse
            out[rows] = part_out
            if part.key:
                key_lse[rows] = torch.logaddexp(key_lse[rows], part_lse)
        mass_RH = (key_lse[plan.place_R] - lse[plan.place_R]).exp()
        ctx.save_for_backward(qkv_TC, cos, sin, out, lse, mass_RH)
        ctx.heads, ctx.plan = heads, plan
        return out.flatten(1), mass_RH.mean(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_WC, d_mass_R):
        qkv_TC, cos, sin, out, lse, mass_RH = ctx.saved_tensors
        heads, plan = ctx.heads, ctx.plan
        q, k, v = heads.split(qkv_TC)
        q = q[plan.rows]
        d = torch.zeros_like(out) if d_WC is None else d_WC.unflatten(1, (-1, heads.size))
        out_key = out_rest = out
        if d_mass_R is not None and len(plan.place_R):
            d, out_key, out_rest = _shifted(d, out, plan.place_R, d_mass_R, mass_RH)
        d_qkv_TC = torch.zeros_like(qkv_TC)
        d_q, d_k, d_v = heads.split(d_qkv_TC)
        to = _Grads(d_q[plan.rows], d_k, d_v)
        for part in plan.parts:
            part.backward(d, q, k, v, out_key if part.key else out_rest, lse, to)
        d_q[plan.rows] = to.q
        _turn_(d_q, cos, -sin)
        _turn_(d_k, cos, -sin)
        return d_qkv_TC, None, None, None, None


def _shifted(
    d: Tensor, out: Tensor, row_R: Tensor, g_R: Tensor, mass_RH: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(d, the output for parts over key rows, that for the others): sum(d * out') is the row term
    with the mass's gradient in it.

    A row whose output nobody reads has no direction `d` to put the shift in. There `d` is nudged by
    1e-15 of the mass's gradient: too little to move a gradient, and enough to carry the shift.
    """
    g_RH1 = (g_R / mass_RH.shape[1])[:, None, None].to(mass_RH).expand(*mass_RH.shape, 1)
    mass_RH1, d_RHK = mass_RH[..., None], d[row_R]
    norm_RH1 = torch.linalg.vector_norm(d_RHK, dim=-1, keepdim=True, dtype=mass_RH.dtype)
    least_RH1 = 1e-15 * g_RH1.abs()
    dead_RH1 = (norm_RH1 <= least_RH1) & (least_RH1 > 0)
    d_RHK = d_RHK.masked_fill(dead_RH1, 0)
    d_RHK[..., :1] = torch.where(dead_RH1, least_RH1.to(d), d_RHK[..., :1])
    norm_RH1 = torch.where(dead_RH1, d_RHK[..., :1].to(norm_RH1), norm_RH1)
    norm_RH1 = torch.where(norm_RH1 == 0, 1, norm_RH1)
    way_RHK, out_RHK = d_RHK.to(mass_RH) / norm_RH1, out[row_R]
    key_RHK = (out_RHK - way_RHK * (g_RH1 * (1 - mass_RH1) / norm_RH1)).to(out)
    rest_RHK = (out_RHK + way_RHK * (g_RH1 * mass_RH1 / norm_RH1)).to(out)
    return (
        d.index_copy(0, row_R, d_RHK),
        out.index_copy(0, row_R, key_RHK),
        out.index_copy(0, row_R, rest_RHK),
    )


# ---------------------------------------------------------------- sdpa: PyTorch's own flash kernels


@dataclass(frozen=True)
class _Padded:
    """Segments of like length in one dense kernel call: q_BN onto k_BM, padded rows repeat row 0.

    `q_BN` counts among the rows that come out, `k_BM` among all.

    Keys are never padded unless causal, where a padded key stands after every real query; so no
    mask is needed. `slot_Q` are the flat places of `q_BN` that hold the real rows `row_Q`.
    """

    q_BN: Tensor
    k_BM: Tensor
    slot_Q: Tensor
    row_Q: Tensor
    causal: bool
    key: bool
    own: bool

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        heads = q.shape[1]
        q_BHNK, k_BHMK, v_BHMK = _bhnk(q, self.q_BN), *self._keys(k, v, heads)
        out_BHNK, lse_BHN = _kernel(q).forward(q_BHNK, k_BHMK, v_BHMK, self.causal)
        return self._real(out_BHNK.transpose(1, 2)), self._real(lse_BHN.transpose(1, 2))

    def backward(
        self, d: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, to: _Grads
    ) -> None:
        heads, groups = q.shape[1], k.shape[1]
        lse_BNH = lse.new_full((self.q_BN.numel(), heads), UNSEEN)
        lse_BNH[self.slot_Q] = lse[self.row_Q]
        lse_BHN = lse_BNH.view(*self.q_BN.shape, heads).transpose(1, 2).contiguous()
        d_q, d_k, d_v = _kernel(q).backward(
            _bhnk(d, self.q_BN), _bhnk(q, self.q_BN), *self._keys(k, v, heads),
            _bhnk(out, self.q_BN), lse_BHN, self.causal,
        )  # fmt: skip
        to.q.index_add_(0, self.row_Q, self._real(d_q.transpose(1, 2)))
        for grad, part in ((to.k, d_k), (to.v, d_v)):
            grad.index_add_(0, self.k_BM.flatten(), ungrouped(part.transpose(1, 2), groups).flatten(0, 1))

    def _keys(self, k: Tensor, v: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        k_BHMK, v_BHMK = (grouped(x[self.k_BM], heads).transpose(1, 2) for x in (k, v))
        return k_BHMK, v_BHMK

    def _real(self, x_BN: Tensor) -> Tensor:
        flat = x_BN.flatten(0, 1)
        return flat if len(self.slot_Q) == len(flat) else flat[self.slot_Q]


def _bhnk(x_THK: Tensor, index_BN: Tensor) -> Tensor:
    return x_THK[index_BN].transpose(1, 2)


class _CpuFlash:
    """PyTorch's CPU flash kernel; float32, float64, bfloat16; one head size for q, k and v."""

    @staticmethod
    def forward(q, k, v, causal):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)

    @staticmethod
    def backward(d, q, k, v, out, lse, causal):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            d, q, k, v, out, lse, 0.0, causal
        )


class _CudaEfficient:
    """PyTorch's memory-efficient CUDA kernel. Its log-sum-exp is padded to 32 queries."""

    @staticmethod
    def forward(q, k, v, causal):
        out, lse, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, v, None, True, 0.0, causal
        )
        return out, lse[..., : q.shape[2]]

    @staticmethod
    def backward(d, q, k, v, out, lse, causal):
        lse = F.pad(lse, (0, -lse.shape[-1] % 32), value=UNSEEN)
        none = torch.zeros((), dtype=torch.int64)
        return torch.ops.aten._scaled_dot_product_efficient_attention_backward(
            d, q, k, v, None, out, lse, none, none, 0.0, [True, True, True, False], causal
        )[:3]


def _kernel(x: Tensor):
    return _CudaEfficient if x.is_cuda else _CpuFlash


@dataclass(frozen=True)
class Sdpa:
    """PyTorch's flash kernels on padded segments of like length."""

    name: str = "sdpa"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str:
        if device.type not in ("cpu", "cuda"):
            return f"no kernel with a log-sum-exp on {device.type}"
        if device.type == "cuda" and dtype == torch.float64:
            return "the CUDA kernel has no float64"
        return ""

    def attend(
        self, forest: Forest, key_T: Tensor, row_R: Tensor, device: torch.device, read_T: Tensor | None = None
    ) -> Attend:
        calls = _calls(forest, key_T, row_R, read_T)
        parts = [part for call, keys in calls.each for part in _pad(call, keys, calls.place_T, device)]
        return calls.attend(parts, device)

    def dense(self, q_INHK: Tensor, k_INHK: Tensor, v_INHK: Tensor) -> Tensor:
        q_IHNK, k_IHNK, v_IHNK = (x.transpose(1, 2) for x in (q_INHK, k_INHK, v_INHK))
        return F.scaled_dot_product_attention(q_IHNK, k_IHNK, v_IHNK).transpose(1, 2)


@dataclass(frozen=True)
class _Calls:
    """A forest's calls, and for each segment: are its keys such whose mass is read? `rows` come out;
    `place_T` says where among them."""

    each: list[tuple[Call, list[bool]]]
    rows: Tensor | slice
    place_T: np.ndarray
    place_R: Tensor

    def attend(self, parts: Sequence[Part], device: torch.device) -> Attend:
        """The calls as a backend's parts."""
        rows = self.rows if isinstance(self.rows, slice) else self.rows.to(device)
        return Attend(rows, _Plan(parts, rows, self.place_R.to(device)))


def _calls(forest: Forest, key_T: Tensor, row_R: Tensor, read_T: Tensor | None) -> _Calls:
    """The calls that `read_T` and `row_R` need, cut at the edges of key rows where mass is read."""
    edge = None
    if len(row_R):
        order = torch.argsort(forest.enter_T, stable=True)
        edge = torch.zeros(len(forest), dtype=torch.bool)
        edge[order[1:]] = key_T[order[1:]] != key_T[order[:-1]]
    wanted_T = None if read_T is None else read_T.index_fill(0, row_R, True)
    calls, runs = forest.calls(edge, wanted_T)
    each = [(call, [len(row_R) > 0 and bool(key_T[runs[i].rows[0]]) for i in call.run]) for call in calls]
    place_T, rows = np.arange(len(forest)), ALL
    if read_T is not None:
        own = [q for call in calls if call.own for q in call.q]
        out = np.sort(np.concatenate([*own, np.empty(0, np.int64)]))
        place_T[out] = np.arange(len(out))
        rows = torch.from_numpy(out)
    return _Calls(each, rows, place_T, torch.from_numpy(place_T)[row_R])


def _pad(call: Call, keys: Sequence[bool], place_T: np.ndarray, device: torch.device) -> list[_Padded]:
    """Cuts a call's segments into buckets: keys of one length (causal: lengths within a quarter)."""
    lengths = [(keys[i], len(k), len(q)) for i, (q, k) in enumerate(zip(call.q, call.k, strict=True))]
    buckets: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        head = lengths[buckets[-1][0]] if buckets else None
        key, m, n = lengths[i]
        if head and key == head[0] and (call.causal or m == head[1]) and n <= 1.25 * head[2] + 4:
            buckets[-1].append(i)
        else:
            buckets.append([i])
    return [_bucket(call, bucket, keys[bucket[0]], place_T, device) for bucket in buckets]


def _bucket(
    call: Call, members: Sequence[int], key: bool, place_T: np.ndarray, device: torch.device
) -> _Padded:
    q = [call.q[i] for i in members]
    q_BN = np.zeros((len(q), max(map(len, q))), np.int64)
    real = np.zeros(q_BN.shape, bool)
    for i, rows in enumerate(q):
        q_BN[i, : len(rows)], real[i, : len(rows)] = rows, True
    k_BM = q_BN if call.causal else np.stack([call.k[i] for i in members])
    slot_Q = np.flatnonzero(real)
    q_BN = np.where(real, place_T[q_BN], 0)
    to = [torch.from_numpy(a).to(device) for a in (q_BN, k_BM, slot_Q, q_BN.ravel()[slot_Q])]
    return _Padded(*to, causal=call.causal, key=key, own=call.own)


# ---------------------------------------------------------------- xformers: CUDA, packed


@dataclass(frozen=True)
class _Packed:
    """All segments of one sort in one variable-length xformers call."""

    row_Q: Tensor
    row_K: Tensor
    bias: _fmha.AttentionBias
    lengths_q: tuple[int, ...]
    key: bool
    own: bool

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = _fmha.memory_efficient_attention_forward_requires_grad(
            *self._inputs(q, k, v), attn_bias=self.bias
        )
        return out[0], self._packed_lse(lse)

    def backward(
        self, d: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, to: _Grads
    ) -> None:
        groups = k.shape[1]
        d_q, d_k, d_v = _fmha.memory_efficient_attention_backward(
            d[self.row_Q][None], out[self.row_Q][None], self._kernel_lse(lse[self.row_Q], q.dtype),
            *self._inputs(q, k, v), attn_bias=self.bias,
        )  # fmt: skip
        to.q.index_add_(0, self.row_Q, d_q[0])
        for grad, part in ((to.k, d_k), (to.v, d_v)):
            grad.index_add_(0, self.row_K, ungrouped(part[0], groups))

    def _inputs(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = q.shape[1]
        return q[self.row_Q][None], grouped(k[self.row_K], heads)[None], grouped(v[self.row_K], heads)[None]

    def _packed_lse(self, lse: Tensor) -> Tensor:
        """[Q, H] of either layout: FA2 packs [1, H, Q], CUTLASS pads [segments, H, longest]."""
        if lse.shape[0] == 1 and lse.shape[-1] >= len(self.row_Q):
            return lse[0, :, : len(self.row_Q)].T
        return torch.cat([lse[i, :, :n].T for i, n in enumerate(self.lengths_q)])

    def _kernel_lse(self, lse_QH: Tensor, dtype: torch.dtype) -> Tensor:
        """The layout that the backward kernel of this type reads: xformers finds the kernel by it."""
        if dtype != torch.float32:
            return lse_QH.T[None].contiguous()
        padded = pad_sequence(list(lse_QH.split(self.lengths_q)), batch_first=True, padding_value=UNSEEN)
        return padded.transpose(1, 2).contiguous()


@dataclass(frozen=True)
class Xformers:
    """xformers' FA2 (bfloat16) and CUTLASS (float32) kernels on packed segments; CUDA only."""

    name: str = "xformers"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str:
        if device.type != "cuda":
            return f"no kernels for {device.type}"
        if dtype == torch.float64:
            return "no kernel for float64"
        return WHY_NO_XFORMERS

    def attend(
        self, forest: Forest, key_T: Tensor, row_R: Tensor, device: torch.device, read_T: Tensor | None = None
    ) -> Attend:
        calls = _calls(forest, key_T, row_R, read_T)
        return calls.attend(list(packed(calls, device)), device)

    def dense(self, q_INHK: Tensor, k_INHK: Tensor, v_INHK: Tensor) -> Tensor:
        return _fmha.memory_efficient_attention(q_INHK, k_INHK, v_INHK)


def packed(calls: _Calls, device: torch.device) -> Iterator[_Packed]:
    """Each call, once for keys of either sort."""
    for call, keys in calls.each:
        for key in sorted(set(keys)):
            yield pack(call, [i for i, own in enumerate(keys) if own is key], key, calls.place_T, device)


def pack(call: Call, members: Sequence[int], key: bool, place_T: np.ndarray, device: torch.device) -> _Packed:
    """One variable-length call of these segments, with its xformers bias."""
    q, k = [call.q[i] for i in members], [call.k[i] for i in members]
    masks = _fmha.attn_bias
    mask = masks.BlockDiagonalCausalMask if call.causal else masks.BlockDiagonalMask
    lengths_q, lengths_k = tuple(map(len, q)), tuple(map(len, k))
    bias = mask.from_seqlens(lengths_q, lengths_k, device=device)
    row_Q, row_K = (
        torch.from_numpy(rows).to(device) for rows in (place_T[np.concatenate(q)], np.concatenate(k))
    )
    return _Packed(row_Q, row_K, bias, lengths_q, key, call.own)


try:
    logging.getLogger("xformers").setLevel(logging.ERROR)  # its loader warns even where PyTorch's ops serve
    from xformers.ops import fmha as _fmha

    WHY_NO_XFORMERS = ""
except Exception as error:  # absent, or built for another torch: say why when it matters
    WHY_NO_XFORMERS = f"xformers does not import: {error}"

_BACKENDS: tuple[Backend, ...] = (Xformers(), Sdpa(), Eager())
