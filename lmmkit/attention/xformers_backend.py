"""The xformers attention backend for CUDA. This is the only file that imports xformers."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lmmkit.attention.flash import packed_rows
from lmmkit.attention.interface import AttentionFn
from lmmkit.attention.merge import UNSEEN, PartialAttention, attention_from_parts
from lmmkit.attention.schedule import AttentionSpec


@dataclass(frozen=True)
class Xformers:
    """Runs the FA2 (bfloat16) and CUTLASS (float32) kernels of xformers on packed segments; CUDA only."""

    name: str = "xformers"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str:
        if device.type != "cuda":
            return f"no kernels for {device.type}"
        if dtype == torch.float64:
            return "no kernel for float64"
        return loaded().problem

    def prepare(self, spec: AttentionSpec, device: torch.device) -> AttentionFn:
        return attention_from_parts(list(packed(spec, device)), spec, device)

    def dense(self, q_INHK: Tensor, k_INHK: Tensor, v_INHK: Tensor) -> Tensor:
        return loaded().fmha.memory_efficient_attention(q_INHK, k_INHK, v_INHK)


def packed(spec: AttentionSpec, device: torch.device) -> Iterator[PartialAttention]:
    """Yields one partial attention per call: one variable-length kernel call for all its segments."""
    masks = loaded().fmha.attn_bias
    for call in spec.calls:
        mask = masks.BlockDiagonalCausalMask if call.causal else masks.BlockDiagonalMask
        lengths = call.lengths.tolist()
        bias = mask.from_seqlens(lengths, call.m.tolist(), device=device)
        kernel = _Varlen(bias, tuple(lengths))
        yield PartialAttention(*packed_rows(spec, call, device), call.level == 0, call.key, kernel)


@dataclass(frozen=True)
class _Varlen:
    """Runs concatenated segments in one call, B = 1; the bias separates them."""

    grouped: ClassVar[bool] = False
    bias: Any  # `fmha.AttentionBias`
    lengths: tuple[int, ...]

    def forward(self, q_BNHK: Tensor, k_BMHK: Tensor, v_BMHK: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = loaded().fmha.memory_efficient_attention_forward_requires_grad(
            q_BNHK, k_BMHK, v_BMHK, attn_bias=self.bias
        )
        return out, self._packed(lse, q_BNHK.shape[1])[None]

    def backward(
        self, d: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return loaded().fmha.memory_efficient_attention_backward(
            d, out, self._kernels(lse[0], q.dtype), q, k, v, attn_bias=self.bias
        )

    def _packed(self, lse: Tensor, total: int) -> Tensor:
        """Returns [Q, H] from either layout: FA2 packs [1, H, Q], CUTLASS pads [segments, H, longest]."""
        if lse.shape[0] == 1 and lse.shape[-1] >= total:
            return lse[0, :, :total].T
        return torch.cat([lse[i, :, :n].T for i, n in enumerate(self.lengths)])

    def _kernels(self, lse_QH: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the layout for the backward kernel of this dtype; xformers selects the kernel by it."""
        if dtype != torch.float32:
            return lse_QH.T[None].contiguous()
        padded = pad_sequence(list(lse_QH.split(self.lengths)), batch_first=True, padding_value=UNSEEN)
        return padded.transpose(1, 2).contiguous()


class Loaded(NamedTuple):
    """The kernels of xformers, or why they cannot be imported."""

    fmha: Any
    problem: str


@functools.cache
def loaded() -> Loaded:
    """Imports xformers when a CUDA device first asks for it: it takes 2 s, since it imports torch's compiler."""
    try:
        with contextlib.suppress(PackageNotFoundError, OSError):  # its kernels then report what they lack
            _load_cuda_runtime()
        logging.getLogger("xformers").setLevel(logging.ERROR)  # its loader warns even if PyTorch's ops serve
        from xformers.ops import fmha
    except Exception as error:  # absent, or built for another torch: report why only if it is needed
        return Loaded(None, f"xformers does not import: {error}")
    return Loaded(fmha, "")


def _load_cuda_runtime() -> None:
    """Loads the CUDA 12 runtime that xformers' library is linked to, which a torch for CUDA 13 does not bring.

    Without it xformers imports, but has no kernels. Where torch has loaded one, that one is used.
    """
    try:
        ctypes.CDLL(_RUNTIME, ctypes.RTLD_GLOBAL)
    except OSError:
        for file in files("nvidia-cuda-runtime-cu12") or ():
            if file.name == _RUNTIME:
                ctypes.CDLL(str(file.locate()), ctypes.RTLD_GLOBAL)


_RUNTIME = "libcudart.so.12"
