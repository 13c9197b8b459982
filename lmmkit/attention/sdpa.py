"""PyTorch's flash kernels on segments of similar length, with their log-sum-exp."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmmkit.attention.interface import AttentionFn
from lmmkit.attention.merge import (
    UNSEEN,
    Kernel,
    PartialAttention,
    attention_from_parts,
    merge_partials,
    row_set,
)
from lmmkit.attention.schedule import AttentionSpec, Call

STRETCH = 192  # rows: the CPU kernel computes full blocks of 512 keys, causal or not


@dataclass(frozen=True)
class Sdpa:
    """Runs PyTorch's kernels: flash attention on CPU, memory-efficient attention on CUDA."""

    name: str = "sdpa"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str:
        if device.type not in ("cpu", "cuda"):
            return f"no kernel with a log-sum-exp on {device.type}"
        if device.type == "cuda" and dtype == torch.float64:
            return "the CUDA kernel has no float64"
        return ""

    def prepare(self, spec: AttentionSpec, device: torch.device) -> AttentionFn:
        kernels = _CUDA if device.type == "cuda" else _CPU
        return attention_from_parts(list(_parts(spec, kernels, device)), spec, device)

    def dense(self, q_INHK: Tensor, k_INHK: Tensor, v_INHK: Tensor) -> Tensor:
        q_IHNK, k_IHNK, v_IHNK = (x.transpose(1, 2) for x in (q_INHK, k_INHK, v_INHK))
        return F.scaled_dot_product_attention(q_IHNK, k_IHNK, v_IHNK).transpose(1, 2)


def _parts(
    spec: AttentionSpec, kernels: dict[bool, Kernel], device: torch.device
) -> Iterator[PartialAttention]:
    """Yields the segments of each call in batches of similar length; keys are padded only if causal."""
    for call in spec.calls:
        for batch in _alike(call):
            q = row_set(spec.places(batch.q), batch.n, batch.of, device)
            k = row_set(batch.k, batch.m, np.arange(len(batch.k)), device)
            yield PartialAttention(q, k, own=call.level == 0, key=call.key, kernel=kernels[call.causal])


def _alike(call: Call) -> Iterator[Call]:
    """Yields parts of a call that fit one dense kernel call: at most 1.25 n + 8 queries, where n is the
    smallest number, and keys of equal length unless causal."""
    lengths = call.lengths
    order = np.lexsort((call.k, lengths, call.m))
    begin, n, m = 0, lengths[order].tolist(), call.m[order].tolist()
    for i in range(1, len(order) + 1):
        end = i == len(order) or n[i] > 1.25 * n[begin] + 8 or (m[i] != m[begin] and not call.causal)
        if end:
            yield call.part(order[begin:i])
            begin = i


def _heads_first(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Swaps dimensions 1 and 2: [B, N, H, ...] <-> [B, H, N, ...]."""
    return tuple(x.transpose(1, 2) for x in tensors)


@dataclass(frozen=True)
class _Flash:
    """Runs the CPU flash kernel onto all keys: float32, float64, bfloat16; equal head size for q, k and v."""

    grouped: ClassVar[bool] = False

    def forward(self, q_BNHK: Tensor, k_BMHK: Tensor, v_BMHK: Tensor) -> tuple[Tensor, Tensor]:
        return _heads_first(*_flash(*_heads_first(q_BNHK, k_BMHK, v_BMHK)))  # type: ignore[return-value]

    def backward(
        self, d: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _heads_first(*_flash_back(*_heads_first(d, q, k, v, out, lse)))  # type: ignore[return-value]


@dataclass(frozen=True)
class _CausalFlash:
    """Runs the CPU flash kernel causally. A stretch attends to itself causally, and to all earlier ones."""

    grouped: ClassVar[bool] = False

    def forward(self, q_BNHK: Tensor, k_BMHK: Tensor, v_BMHK: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = _heads_first(q_BNHK, k_BMHK, v_BMHK)
        found = []
        for a, b in _stretches(q.shape[2]):
            here = slice(a, b)
            own = _flash(q[:, :, here], k[:, :, here], v[:, :, here], causal=True)
            before = _flash(q[:, :, here], k[:, :, :a], v[:, :, :a]) if a else ()
            found.append(merge_partials(*own, *before) if before else own)
        outs, lses = zip(*found, strict=True)
        return torch.cat(_heads_first(*outs), 1), torch.cat(_heads_first(*lses), 1)

    def backward(
        self, d: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        d_q, d_k, d_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        d, q, k, v, out, lse, to_q, to_k, to_v = _heads_first(d, q, k, v, out, lse, d_q, d_k, d_v)
        *earlier, last = _stretches(q.shape[2])
        for a, b in (last, *earlier):  # the last one covers all keys, so it writes and the others add
            here, write = slice(a, b), Tensor.copy_ if b == q.shape[2] else Tensor.add_
            row, rest = (d[:, :, here], q[:, :, here]), (out[:, :, here], lse[:, :, here])
            own_q, own_k, own_v = _flash_back(*row, k[:, :, here], v[:, :, here], *rest, causal=True)
            to_q[:, :, here] = own_q
            write(to_k[:, :, here], own_k)
            write(to_v[:, :, here], own_v)
            if a:
                before_q, before_k, before_v = _flash_back(*row, k[:, :, :a], v[:, :, :a], *rest)
                to_q[:, :, here] += before_q
                write(to_k[:, :, :a], before_k)
                write(to_v[:, :, :a], before_v)
        return d_q, d_k, d_v


def _stretches(n: int) -> list[tuple[int, int]]:
    """Returns the bounds of equal stretches of at most `STRETCH` rows; the last may be shorter."""
    size = -(-n // -(-n // STRETCH))
    return [(a, min(a + size, n)) for a in range(0, n, size)]


def _flash(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)


def _flash_back(
    d: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        d, q, k, v, out, lse.contiguous(), 0.0, causal
    )


@dataclass(frozen=True)
class _Efficient:
    """Runs PyTorch's memory-efficient CUDA kernel. Its log-sum-exp is padded to a multiple of 32 queries."""

    grouped: ClassVar[bool] = False
    causal: bool

    def forward(self, q_BNHK: Tensor, k_BMHK: Tensor, v_BMHK: Tensor) -> tuple[Tensor, Tensor]:
        out, lse, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
            *_heads_first(q_BNHK, k_BMHK, v_BMHK), None, True, 0.0, self.causal
        )
        return _heads_first(out, lse[..., : q_BNHK.shape[1]])  # type: ignore[return-value]

    def backward(
        self, d: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        d, q, k, v, out, lse = _heads_first(d, q, k, v, out, lse)
        lse = F.pad(lse, (0, -lse.shape[-1] % 32), value=UNSEEN).contiguous()  # it may be padded already
        none = torch.zeros((), dtype=torch.int64)
        grads = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
            d, q, k, v, None, out, lse, none, none, 0.0, [True, True, True, False], self.causal
        )
        return _heads_first(*grads[:3])  # type: ignore[return-value]


_CPU: dict[bool, Kernel] = {False: _Flash(), True: _CausalFlash()}
_CUDA: dict[bool, Kernel] = {causal: _Efficient(causal) for causal in (False, True)}
