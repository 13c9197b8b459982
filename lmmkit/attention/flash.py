"""PyTorch's own variable-length flash kernels on packed segments; CUDA only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lmmkit.attention.interface import AttentionFn, moved
from lmmkit.attention.merge import PartialAttention, RowSet, attention_from_parts, row_set
from lmmkit.attention.schedule import AttentionSpec, Call
from lmmkit.attention.sdpa import Sdpa


@dataclass(frozen=True)
class Flash:
    """Runs PyTorch's flash kernels on packed segments, in 16-bit types; CUDA only. Key and value heads are not
    repeated for groups of query heads, and the kernels are deterministic where torch is asked to be."""

    name: str = "flash"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str:
        if device.type != "cuda":
            return f"no kernels for {device.type}"
        if dtype not in (torch.bfloat16, torch.float16):
            return f"no kernel for {str(dtype).removeprefix('torch.')}"
        return ""

    def prepare(self, spec: AttentionSpec, device: torch.device) -> AttentionFn:
        return attention_from_parts(list(_parts(spec, device)), spec, device)

    def dense(self, q_INHK: Tensor, k_INHK: Tensor, v_INHK: Tensor) -> Tensor:
        return Sdpa().dense(q_INHK, k_INHK, v_INHK)


def packed_rows(spec: AttentionSpec, call: Call, device: torch.device) -> tuple[RowSet, RowSet]:
    """Returns the query rows and the key rows of a call, all segments one after the other, B = 1."""
    q = row_set(spec.places(call.q), call.n, np.zeros_like(call.q), device)
    return q, row_set(call.k, call.m, np.zeros_like(call.k), device)


def _parts(spec: AttentionSpec, device: torch.device) -> Iterator[PartialAttention]:
    """Yields one partial attention per call: one variable-length kernel call for all its segments."""
    seed = torch.empty(2, dtype=torch.uint64, device=device)  # of dropout, which is not used
    for call in spec.calls:
        end_q, end_k = (moved(_ends(n), device) for n in (call.lengths, call.m))
        most_q, most_k = (
            max(2, int(n.max())) for n in (call.lengths, call.m)
        )  # 1 has a layout of its own in FA2
        kernel = _Varlen(call.causal, (end_q, end_k, most_q, most_k), seed)
        yield PartialAttention(*packed_rows(spec, call, device), call.level == 0, call.key, kernel)


def _ends(lengths: np.ndarray) -> np.ndarray:
    """Returns where each segment begins, and the end of the last."""
    return np.append(0, np.cumsum(lengths)).astype(np.int32)


@dataclass(frozen=True)
class _Varlen:
    """Runs concatenated segments in one call, B = 1. `segments`: the bounds of queries and keys, and the most
    of each in a segment."""

    grouped: ClassVar[bool] = True
    causal: bool
    segments: tuple[Tensor, Tensor, int, int]
    seed: Tensor

    def forward(self, q_BNHK: Tensor, k_BMHK: Tensor, v_BMHK: Tensor) -> tuple[Tensor, Tensor]:
        out, lse_HQ, *_ = torch.ops.aten._flash_attention_forward(
            q_BNHK[0], k_BMHK[0], v_BMHK[0], *self.segments, 0.0, self.causal, False
        )
        return out[None], lse_HQ.T[None]

    def backward(
        self, d: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads = torch.ops.aten._flash_attention_backward(
            d[0], q[0], k[0], v[0], out[0], lse[0].T.contiguous(), *self.segments, 0.0, self.causal,
            self.seed, self.seed,
        )  # fmt: skip
        d_q, d_k, d_v = (grad[None] for grad in grads)
        return d_q, d_k, d_v
