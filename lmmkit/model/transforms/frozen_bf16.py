"""Frozen matrices held in bfloat16, put on a part from outside; what flows through it stays as wide.

Only matrices are narrowed: linears and token rows. Norms, biases, positions and the patch
convolution are a thousandth of a model, and kernels want them as wide as their input.

Under autocast a product takes a narrow matrix as it is; it would round a wide one at every use.
Elsewhere the matrix is widened for its product alone, and the graph remembers it narrow. The other
way, a product of bfloat16, takes a CPU without such instructions six times as long (LAB.md).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmmkit.model.layers import FusedLinear

NARROW = torch.bfloat16


def hold_narrow(part: nn.Module, *, autocast: bool) -> None:
    """Rounds a part's matrices to bfloat16, where they lie or on meta; none of them may learn.

    `autocast`: whether the part computes under it, and so needs no widening.
    """
    for module in part.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(_widen_rows)
        elif not isinstance(module, FusedLinear | nn.Linear):
            continue
        elif not autocast:
            module.forward = functools.partial(_product, module)  # type: ignore[method-assign]
        module.weight.data = module.weight.data.to(NARROW)


def _widen_rows(embedding: nn.Module, inputs: tuple[Tensor, ...], rows_TD: Tensor) -> Tensor:
    return rows_TD.float()


def _product(linear: FusedLinear | nn.Linear, x: Tensor) -> Tensor:
    return _Product.apply(x, linear.weight, linear.bias)


class _Product(torch.autograd.Function):
    """`F.linear` with a frozen matrix narrower than its input."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None):
        ctx.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, d):
        (weight,) = ctx.saved_tensors
        return d @ weight.to(d.dtype), None, None
