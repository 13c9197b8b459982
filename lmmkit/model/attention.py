"""Attention over a forest, with the attention mass of chosen rows. The one file that knows kernels.

A backend prepares an `Attend` once a batch; all layers share it. It takes the projections of all
packed rows and gives their outputs, and the mass that each of the R asked rows puts on the key
rows (mean over heads, float32), exact in value and gradient, without an [T, T] map:

The forest's runs are cut where key rows begin and end, so every partial call is onto keys of one
sort. Partial softmaxes merge by their log-sum-exp, and the merge weight of the parts over key rows
IS the mass: m = exp(lse_key - lse). Its gradient g only shifts the row term D = sum(dO * O) of the
softmax backward: D - g (1 - m) in parts over key rows, D + g m in the others. A flash backward
computes D from (dO, O) itself, so the shift goes in through the O it is handed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lmmkit.forest import Call, Forest

Attend = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(q_THK, k_TGK, v_TGK) -> (out_THK, mass_R)."""

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

    def attend(self, forest: Forest, key_T: Tensor, row_R: Tensor, device: torch.device) -> Attend:
        """The attention of this forest; the mass is of rows `row_R` onto rows where `key_T`."""
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
    return x_THK.repeat_interleave(heads // x_THK.shape[-2], dim=-2)


# ---------------------------------------------------------------- eager: the plain twin


@dataclass(frozen=True)
class Eager:
    """Masked softmax with the whole map. Slow and plain: what the others are compared with."""

    name: str = "eager"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str:
        return ""

    def attend(self, forest: Forest, key_T: Tensor, row_R: Tensor, device: torch.device) -> Attend:
        see_TT, key_T, row_R = forest.see().to(device), key_T.to(device), row_R.to(device)

        def attend(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> tuple[Tensor, Tensor]:
            weight_HTT = attention_map(q_THK, k_TGK, see_TT)
            out_THK = torch.einsum("hqk,khd->qhd", weight_HTT.to(v_TGK), grouped(v_TGK, q_THK.shape[1]))
            mass_R = weight_HTT[:, row_R][..., key_T].sum(-1).mean(0)
            return out_THK, mass_R

        return attend

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


class Part(Protocol):
    """One partial attention: query rows onto some of the keys they see."""

    @property
    def row_Q(self) -> Tensor:
        """The query rows."""
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
        """Projections of all rows -> (out_QHK, lse_QH), lse in float32 or wider."""
        ...

    def backward(
        self, d: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, to: _Grads
    ) -> None:
        """Adds the gradients of q, k, v of all rows to `to`; `out`, `lse`, `d` are of all rows."""
        ...


@dataclass
class _Grads:
    q: Tensor
    k: Tensor
    v: Tensor


class _Merged(torch.autograd.Function):
    """Partial attentions merged by log-sum-exp, with the mass of rows `row_R`; see the file head."""

    @staticmethod
    def forward(ctx, q, k, v, parts: Sequence[Part], row_R: Tensor):
        wide = torch.promote_types(q.dtype, torch.float32)
        out, lse = torch.empty_like(q), q.new_full(q.shape[:2], -torch.inf, dtype=wide)
        key_lse = torch.full_like(lse, -torch.inf)
        for part in parts:
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
        mass_TH = (key_lse - lse).exp()
        ctx.save_for_backward(q, k, v, out, lse, mass_TH, row_R)
        ctx.parts = parts
        return out, mass_TH[row_R].mean(-1)

    @staticmethod
    def backward(ctx, d, d_mass_R):
        q, k, v, out, lse, mass_TH, row_R = ctx.saved_tensors
        out_key = out_rest = out
        if len(row_R):
            g_TH = torch.zeros_like(lse)
            g_TH[row_R] = (d_mass_R / lse.shape[1])[:, None].to(g_TH)
            d, norm_TH1 = _nudged(d, g_TH)
            out_key = _shifted(out, d, norm_TH1, -g_TH * (1 - mass_TH))
            out_rest = _shifted(out, d, norm_TH1, g_TH * mass_TH)
        to = _Grads(torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v))
        for part in ctx.parts:
            part.backward(d, q, k, v, out_key if part.key else out_rest, lse, to)
        return to.q, to.k, to.v, None, None


def _nudged(d: Tensor, g_TH: Tensor) -> tuple[Tensor, Tensor]:
    """(d, its norms [T, H, 1]), `d` nudged by 1e-15 of the mass's gradient where it is less than that.

    Such rows' outputs nobody reads; the nudge is too little to move a gradient and enough to carry
    the shift of `_shifted`, which needs a direction.
    """
    norm_TH1 = torch.linalg.vector_norm(d, dim=-1, keepdim=True, dtype=g_TH.dtype)
    least_TH1 = 1e-15 * g_TH.abs()[..., None]
    dead_TH1 = (norm_TH1 <= least_TH1) & (least_TH1 > 0)
    d = d.masked_fill(dead_TH1, 0)
    d[..., :1] = torch.where(dead_TH1, least_TH1.to(d), d[..., :1])
    return d, torch.where(dead_TH1, d[..., :1].to(norm_TH1), norm_TH1)


def _shifted(out: Tensor, d: Tensor, norm_TH1: Tensor, by_TH: Tensor) -> Tensor:
    """An output `out'` with sum(d * out') = sum(d * out) + by, a row and head."""
    norm_TH1 = torch.where(norm_TH1 == 0, 1, norm_TH1)
    return (out + d.to(by_TH) / norm_TH1 * (by_TH[..., None] / norm_TH1)).to(out)


# ---------------------------------------------------------------- sdpa: PyTorch's own flash kernels


@dataclass(frozen=True)
class _Padded:
    """Segments of like length in one dense kernel call: q_BN onto k_BM, padded rows repeat row 0.

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
            part_BMGK = part.transpose(1, 2).unflatten(2, (groups, heads // groups)).sum(3)
            grad.index_add_(0, self.k_BM.flatten(), part_BMGK.flatten(0, 1))

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

    def attend(self, forest: Forest, key_T: Tensor, row_R: Tensor, device: torch.device) -> Attend:
        parts = [part for call, keys in _calls(forest, key_T, row_R) for part in _pad(call, keys, device)]
        return _merged(parts, row_R.to(device))

    def dense(self, q_INHK: Tensor, k_INHK: Tensor, v_INHK: Tensor) -> Tensor:
        q_IHNK, k_IHNK, v_IHNK = (x.transpose(1, 2) for x in (q_INHK, k_INHK, v_INHK))
        return F.scaled_dot_product_attention(q_IHNK, k_IHNK, v_IHNK).transpose(1, 2)


def _merged(parts: Sequence[Part], row_R: Tensor) -> Attend:
    return lambda q, k, v: _Merged.apply(q, k, v, parts, row_R)


def _calls(forest: Forest, key_T: Tensor, row_R: Tensor) -> list[tuple[Call, list[bool]]]:
    """The forest's calls, cut at the edges of key rows, and for each segment: are its keys such?"""
    if len(row_R) == 0:
        return [(call, [False] * len(call.q)) for call in forest.calls()[0]]
    order = torch.argsort(forest.enter_T, stable=True)
    edge = torch.zeros(len(forest), dtype=torch.bool)
    edge[order[1:]] = key_T[order[1:]] != key_T[order[:-1]]
    calls, runs = forest.calls(edge)
    return [(call, [bool(key_T[runs[i].rows[0]]) for i in call.run]) for call in calls]


def _pad(call: Call, keys: Sequence[bool], device: torch.device) -> list[_Padded]:
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
    return [_bucket(call, bucket, keys[bucket[0]], device) for bucket in buckets]


def _bucket(call: Call, members: Sequence[int], key: bool, device: torch.device) -> _Padded:
    q = [call.q[i] for i in members]
    q_BN = np.zeros((len(q), max(map(len, q))), np.int64)
    real = np.zeros(q_BN.shape, bool)
    for i, rows in enumerate(q):
        q_BN[i, : len(rows)], real[i, : len(rows)] = rows, True
    k_BN = q_BN if call.causal else np.stack([call.k[i] for i in members])
    slot_Q = np.flatnonzero(real)
    to = [torch.from_numpy(a).to(device) for a in (q_BN, k_BN, slot_Q, q_BN.ravel()[slot_Q])]
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
        heads, groups = q.shape[1], k.shape[1]
        d_q, d_k, d_v = _fmha.memory_efficient_attention_backward(
            d[self.row_Q][None], out[self.row_Q][None], self._kernel_lse(lse[self.row_Q], q.dtype),
            *self._inputs(q, k, v), attn_bias=self.bias,
        )  # fmt: skip
        to.q.index_add_(0, self.row_Q, d_q[0])
        for grad, part in ((to.k, d_k), (to.v, d_v)):
            grad.index_add_(0, self.row_K, part[0].unflatten(1, (groups, heads // groups)).sum(2))

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

    def attend(self, forest: Forest, key_T: Tensor, row_R: Tensor, device: torch.device) -> Attend:
        parts = []
        for call, keys in _calls(forest, key_T, row_R):
            for key in sorted(set(keys)):
                parts.append(pack(call, [i for i, own in enumerate(keys) if own is key], key, device))
        return _merged(parts, row_R.to(device))

    def dense(self, q_INHK: Tensor, k_INHK: Tensor, v_INHK: Tensor) -> Tensor:
        return _fmha.memory_efficient_attention(q_INHK, k_INHK, v_INHK)


def pack(call: Call, members: Sequence[int], key: bool, device: torch.device) -> _Packed:
    """One variable-length call of these segments, with its xformers bias."""
    q, k = [call.q[i] for i in members], [call.k[i] for i in members]
    masks = _fmha.attn_bias
    mask = masks.BlockDiagonalCausalMask if call.causal else masks.BlockDiagonalMask
    lengths_q, lengths_k = tuple(map(len, q)), tuple(map(len, k))
    bias = mask.from_seqlens(lengths_q, lengths_k, device=device)
    row_Q, row_K = (torch.from_numpy(np.concatenate(rows)).to(device) for rows in (q, k))
    return _Packed(row_Q, row_K, bias, lengths_q, key, call.own)


try:
    logging.getLogger("xformers").setLevel(logging.ERROR)  # its loader warns even where PyTorch's ops serve
    from xformers.ops import fmha as _fmha

    WHY_NO_XFORMERS = ""
except Exception as error:  # absent, or built for another torch: say why when it matters
    WHY_NO_XFORMERS = f"xformers does not import: {error}"

_BACKENDS: tuple[Backend, ...] = (Xformers(), Sdpa(), Eager())
