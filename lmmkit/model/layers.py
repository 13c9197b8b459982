"""Layers of the decoder and the vision encoder: norms, fused linears, attention projections, MLPs, blocks."""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmmkit.attention.interface import AttentionFn, Heads, Rotary

ACTIVATIONS = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class _RmsNorm(torch.autograd.Function):
    """Computes `F.rms_norm` on CPU, which has no kernel for it, in few passes over memory."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float):
        out, scale = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d):
        x, weight, scale = ctx.saved_tensors
        unit = x * scale
        slope = d * unit
        flat = slope.flatten(0, -2)
        d_weight = flat.sum(0).to(weight) if ctx.needs_input_grad[1] else None
        along = torch.mv(flat, weight.to(flat)).div_(-x.shape[-1]).view_as(scale)
        return (d * weight).to(unit).addcmul_(unit, along).mul_(scale).to(x), d_weight, None


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns (x / rms(x) * weight, 1 / rms(x))."""
    wide = torch.promote_types(x.dtype, torch.float32)
    rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    scale = rms.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * scale).mul_(weight).to(x), scale


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns x / rms(x) * weight, with the rms in float32 or wider."""
    if x.is_cuda or torch.compiler.is_compiling():  # both have a kernel, or generate one
        return F.rms_norm(x, weight.shape, weight, eps)
    # an autograd node costs a third of the norm of one row, so generation avoids it
    return _RmsNorm.apply(x, weight, eps) if torch.is_grad_enabled() else _normed(x, weight, eps)[0]


class _SwiGLU(torch.autograd.Function):
    """Computes silu(gate) * up of a packed projection; saves only the projection, has one gradient buffer."""

    @staticmethod
    def forward(ctx, gate_up: Tensor):
        ctx.save_for_backward(gate_up)
        return _gated(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx, d):
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        out = torch.empty_like(gate_up)
        d_gate, d_up = out.chunk(2, -1)
        torch.mul(F.silu(gate), d, out=d_up)
        torch.ops.aten.silu_backward.grad_input(d * up, gate, grad_input=d_gate)
        return out


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


def swiglu(gate_up: Tensor) -> Tensor:
    """Returns silu(gate) * up, where gate and up are concatenated: [..., 2 M] -> [..., M]."""
    if torch.compiler.is_compiling():
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up
    return _SwiGLU.apply(gate_up) if torch.is_grad_enabled() else _gated(gate_up)


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


FEW = 8  # rows


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Computes `F.linear`. For few rows without a graph, as in generation, the CPU library leaves threads
    idle or reads the weight twice; `_of_few` does not (docs/performance.md).
    """
    few = x.ndim == 2 and 0 < len(x) <= FEW and x.device.type == "cpu" and x.dtype == torch.float32
    if not few or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    out = _of_few(x, weight)
    return out if bias is None else out.add_(bias)


def _of_few(x: Tensor, weight: Tensor) -> Tensor:
    """Returns x weight^T for 1 to `FEW` rows. Several rows: weight x^T, transposed. One row: a slice of the
    weight per thread."""
    if len(x) > 1:
        return torch.mm(weight, x.T).T.contiguous()
    shares = torch.get_num_threads()
    if len(weight) % shares:
        return torch.mm(x, weight.T)
    each = weight.view(shares, -1, weight.shape[1]).transpose(1, 2)
    return torch.bmm(x.expand(shares, 1, -1), each).view(1, -1)


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
    """Computes one decoder layer: (x_TD, rotary, attention_fn) -> (x_WD, mass_R), without hidden state.

    Grouped-query attention with rotary positions; `attention_fn` implements the rule of which row sees
    which. `before` and `after` are the code around it that `torch.compile` may fuse.
    """

    def __init__(self, attention: SelfAttention, mlp: SwiGLU, *, width: int, norm_eps: float):
        super().__init__()
        self.attention_norm = RMSNorm(width, norm_eps)
        self.attention = attention
        self.mlp_norm = RMSNorm(width, norm_eps)
        self.mlp = mlp

    def forward(self, x_TD: Tensor, rotary: Rotary, attention_fn: AttentionFn) -> tuple[Tensor, Tensor]:
        out_WC, mass_R = attention_fn(self.before(x_TD), self.attention.heads, rotary)
        return self.after(x_TD[attention_fn.rows], out_WC), mass_R

    def before(self, x_TD: Tensor) -> Tensor:
        """Returns the input of attention, [T, C]."""
        return self.attention.project(self.attention_norm(x_TD))

    def after(self, x_WD: Tensor, out_WC: Tensor) -> Tensor:
        """Returns the output rows [W, D], from their states `x_WD` and their attention outputs `out_WC`."""
        x_WD = x_WD + self.attention.out(out_WC)
        return x_WD + self.mlp(self.mlp_norm(x_WD))
