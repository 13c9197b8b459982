"""Frozen matrices stored in bfloat16, applied to a part from outside; activations keep their dtype.

Only matrices are rounded: linears and token embeddings. Norms, biases, positions and the patch
convolution are a thousandth of a model, and kernels need them in the dtype of their input.

Under autocast a product uses a bfloat16 matrix directly; a float32 one would be rounded at each use.
Elsewhere the matrix is widened only for its product, and the graph saves the bfloat16 one. The
alternative, a bfloat16 product, is six times slower on a CPU without such instructions (LAB.md).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmmkit.model.layers import FusedLinear

NARROW = torch.bfloat16


def narrow_matrices(part: nn.Module, *, autocast: bool) -> None:
    """Rounds the matrices of a part to bfloat16, on their device or on meta; all of them must be frozen.

    `autocast`: whether the part computes under autocast, and so needs no widening.
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
    """Computes `F.linear` with a frozen matrix of lower precision than its input."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None):
        ctx.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, d):
        (weight,) = ctx.saved_tensors
        return d @ weight.to(d.dtype), None, None
