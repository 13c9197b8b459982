"""Layers of the decoder and the vision encoder: norms, fused linears, attention projections, MLPs, blocks."""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmmkit.attention.interface import AttentionFn, Heads, Rotary
from lmmkit.model.cpu_ops import linear, rms_norm, swiglu

ACTIVATIONS = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class RMSNorm(nn.Module):
    """Computes x / rms(x) * weight."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class FusedLinear(nn.Module):
    """Stores several linears with the same input as one matrix; `slices` gives the matrix rows of each."""

    def __init__(self, width: int, parts: dict[str, int], *, bias: bool):
        super().__init__()
        ends = [0, *accumulate(parts.values())]
        self.sizes = parts
        self.slices = {name: slice(a, b) for name, a, b in zip(parts, ends, ends[1:], strict=False)}
        self.weight = nn.Parameter(torch.empty(ends[-1], width))
        self.bias = nn.Parameter(torch.empty(ends[-1])) if bias else None

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs of the linears, concatenated in order."""
        return linear(x, self.weight, self.bias)


class Linear(nn.Linear):
    """Extends `nn.Linear`: drawn from N(0, gain^2 / fan_in). Residual branches use a gain below 1."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool, gain: float = 1.0):
        self.gain = gain
        super().__init__(n_in, n_out, bias=bias)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.gain * self.in_features**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override] (its argument's name)
        return linear(x, self.weight, self.bias)


class NormedHeads(nn.Module):
    """Normalizes the queries and the keys of a packed projection, per head."""

    def __init__(self, heads: Heads, eps: float):
        super().__init__()
        self.heads = heads
        self.q, self.k = RMSNorm(heads.size, eps), RMSNorm(heads.size, eps)

    def forward(self, qkv_TC: Tensor) -> Tensor:
        q, k, v = self.heads.split(qkv_TC)
        return torch.cat([self.q(q), self.k(k), v], 1).flatten(1)


class SelfAttention(nn.Module):
    """Holds the parameters of grouped-query attention: the projections before and after it."""

    def __init__(
        self, width: int, heads: Heads, *, qkv_bias: bool, qk_norm: bool, norm_eps: float, gain: float
    ):
        super().__init__()
        self.heads = heads
        q, kv = heads.q * heads.size, heads.kv * heads.size
        self.qkv = FusedLinear(width, {"q": q, "k": kv, "v": kv}, bias=qkv_bias)
        self.norm = NormedHeads(heads, norm_eps) if qk_norm else nn.Identity()
        self.out = Linear(q, width, bias=False, gain=gain)

    def project(self, x_TD: Tensor) -> Tensor:
        """Returns the packed projection, [T, C]."""
        return self.norm(self.qkv(x_TD))


class SwiGLU(nn.Module):
    """Computes down(silu(gate(x)) * up(x)); gate and up are stored as one matrix."""

    def __init__(self, width: int, mlp: int, *, gain: float):
        super().__init__()
        self.gate_up = FusedLinear(width, {"gate": mlp, "up": mlp}, bias=False)
        self.down = Linear(mlp, width, bias=False, gain=gain)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down(swiglu(self.gate_up(x_TD)))


class Block(nn.Module):
    """Computes one decoder layer: (x_TD, rotary, attention_fn) -> (x_WD, mass_R, maps...), without hidden state.

    Grouped-query attention with rotary positions; `attention_fn` implements the rule of which row
    attends to which. `before` and `after` are the code around it that `torch.compile` may fuse.
    """

    def __init__(self, attention: SelfAttention, mlp: SwiGLU, *, width: int, norm_eps: float):
        super().__init__()
        self.attention_norm = RMSNorm(width, norm_eps)
        self.attention = attention
        self.mlp_norm = RMSNorm(width, norm_eps)
        self.mlp = mlp

    def forward(self, x_TD: Tensor, rotary: Rotary, attention_fn: AttentionFn) -> tuple[Tensor, ...]:
        out_WC, mass_R, *maps = attention_fn(self.before(x_TD), self.attention.heads, rotary)
        return self.after(x_TD[attention_fn.rows], out_WC), mass_R, *maps

    def before(self, x_TD: Tensor) -> Tensor:
        """Returns the input of attention, [T, C]."""
        return self.attention.project(self.attention_norm(x_TD))

    def after(self, x_WD: Tensor, out_WC: Tensor) -> Tensor:
        """Returns the output rows [W, D], from their states `x_WD` and their attention outputs `out_WC`."""
        x_WD = x_WD + self.attention.out(out_WC)
        return x_WD + self.mlp(self.mlp_norm(x_WD))
