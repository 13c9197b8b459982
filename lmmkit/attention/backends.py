"""Attention over a forest, with the attention mass of chosen rows: the backends and their choice.

A backend prepares an `Attend` once a batch; all layers share it. It takes the projections of all
packed rows, turns queries and keys by their positions, and gives the rows' outputs and the mass
that each of the R asked rows puts on the key rows (mean over heads, float32), exact in value and
gradient. `eager` does so with the whole map; the others without one, see `merge.py`.
This is the one file that knows xformers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lmmkit.attention.interface import ALL, Attend, Heads, Turn, grouped, turned
from lmmkit.attention.merge import UNSEEN, Part, attend, places
from lmmkit.attention.schedule import Sight
from lmmkit.attention.sdpa import Sdpa

_log = logging.getLogger("lmmkit")


class Backend(Protocol):
    """One way to compute attention."""

    @property
    def name(self) -> str:
        """What a recipe calls it."""
        ...

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str:
        """Why it cannot run there; empty when it can."""
        ...

    def attend(self, sight: Sight, device: torch.device) -> Attend:
        """The attention of a forest as `sight` asks for it."""
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


# ---------------------------------------------------------------- eager: the plain twin


@dataclass(frozen=True)
class Eager:
    """Masked softmax with the whole map. Slow and plain: what the others are compared with."""

    name: str = "eager"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str:
        return ""

    def attend(self, sight: Sight, device: torch.device) -> Attend:
        row_R, read_T = sight.row_R, sight.read_T
        rows = ALL if read_T is None else read_T.index_fill(0, row_R, True).nonzero()[:, 0]
        place_R = torch.searchsorted(torch.arange(len(sight.forest))[rows], row_R).to(device)
        see_WT, key_T = sight.forest.see()[rows].to(device), sight.key_T.to(device)
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


# ---------------------------------------------------------------- xformers: CUDA, packed


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

    def attend(self, sight: Sight, device: torch.device) -> Attend:
        return attend(list(packed(sight, device)), sight.row_W, sight.row_R, device)

    def dense(self, q_INHK: Tensor, k_INHK: Tensor, v_INHK: Tensor) -> Tensor:
        return _fmha.memory_efficient_attention(q_INHK, k_INHK, v_INHK)


def packed(sight: Sight, device: torch.device) -> Iterator[Part]:
    """All segments of a call in one variable-length kernel call."""
    masks = _fmha.attn_bias
    for call in sight.calls:
        mask = masks.BlockDiagonalCausalMask if call.causal else masks.BlockDiagonalMask
        lengths = call.lengths.tolist()
        bias = mask.from_seqlens(lengths, call.m.tolist(), device=device)
        q = places(sight.places(call.q), call.n, np.zeros_like(call.q), device)
        k = places(call.k, call.m, np.zeros_like(call.k), device)
        yield Part(q, k, own=call.level == 0, key=call.key, kernel=_Varlen(bias, tuple(lengths)))


@dataclass(frozen=True)
class _Varlen:
    """Segments one after the other in one call, B = 1, told apart by the bias."""

    bias: _fmha.AttentionBias
    lengths: tuple[int, ...]

    def forward(self, q_BNHK: Tensor, k_BMHK: Tensor, v_BMHK: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = _fmha.memory_efficient_attention_forward_requires_grad(
            q_BNHK, k_BMHK, v_BMHK, attn_bias=self.bias
        )
        return out, self._packed(lse, q_BNHK.shape[1])[None]

    def backward(
        self, d: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _fmha.memory_efficient_attention_backward(
            d, out, self._kernels(lse[0], q.dtype), q, k, v, attn_bias=self.bias
        )

    def _packed(self, lse: Tensor, total: int) -> Tensor:
        """[Q, H] of either layout: FA2 packs [1, H, Q], CUTLASS pads [segments, H, longest]."""
        if lse.shape[0] == 1 and lse.shape[-1] >= total:
            return lse[0, :, :total].T
        return torch.cat([lse[i, :, :n].T for i, n in enumerate(self.lengths)])

    def _kernels(self, lse_QH: Tensor, dtype: torch.dtype) -> Tensor:
        """The layout that the backward kernel of this type reads: xformers finds the kernel by it."""
        if dtype != torch.float32:
            return lse_QH.T[None].contiguous()
        padded = pad_sequence(list(lse_QH.split(self.lengths)), batch_first=True, padding_value=UNSEEN)
        return padded.transpose(1, 2).contiguous()


try:
    logging.getLogger("xformers").setLevel(logging.ERROR)  # its loader warns even where PyTorch's ops serve
    from xformers.ops import fmha as _fmha

    WHY_NO_XFORMERS = ""
except Exception as error:  # absent, or built for another torch: say why when it matters
    WHY_NO_XFORMERS = f"xformers does not import: {error}"

_BACKENDS: tuple[Backend, ...] = (Xformers(), Sdpa(), Eager())
