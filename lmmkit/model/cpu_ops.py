"""RMS norm, SwiGLU product and linear: the values of torch's functions, in less time on a CPU.

CUDA and `torch.compile` use torch's functions where these are as fast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

FEW = 8  # rows


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
    """Returns x / rms(x) * weight in the dtype of x, with the rms in float32 or wider."""
    if x.is_cuda or torch.compiler.is_compiling():  # both have a kernel, or generate one
        return F.rms_norm(x, weight.shape, weight, eps).to(
            x.dtype
        )  # autocast returns float32, but for older torch
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


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Computes `F.linear`. For few rows without a graph, as in generation, the CPU library leaves threads
    idle or reads the weight twice; `_of_few` does not (docs/performance.md).
    """
    if torch.is_grad_enabled():  # asked first: a compiled graph of training serves any number of rows
        return F.linear(x, weight, bias)
    few = x.ndim == 2 and 0 < len(x) <= FEW and x.device.type == "cpu" and x.dtype == torch.float32
    if not few:
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
