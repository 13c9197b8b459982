"""The gated MLP has the values and gradients of its plain formula; activations have one list of names."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from lmmkit.api.model_info import Activation
from lmmkit.model.init import init
from lmmkit.model.layers import ACTIVATIONS, FusedLinear, SwiGLU
from lmmkit.weights.encoders import HIDDEN_ACTS
from tests.model.test_cpu_ops import TIGHT, draw
from tests.support.plain_twins import off


def test_every_activation_of_a_recipe_can_be_computed_and_exported():
    assert set(get_args(Activation)) == set(ACTIVATIONS) == set(HIDDEN_ACTS.values())


@pytest.mark.parametrize("dtype", TIGHT)
def test_swiglu_is_its_plain_formula(dtype):
    mlp = SwiGLU(8, 12, gain=1.0).to(dtype)
    init(mlp, 0)
    x, d = draw(5, 8, dtype=dtype).requires_grad_(), draw(5, 8, dtype=dtype).flip(0)
    learned = (x, mlp.gate_up.weight, mlp.down.weight)

    def plain(x):
        gate, up = (x @ mlp.gate_up.weight.T).chunk(2, -1)
        return (F.silu(gate) * up) @ mlp.down.weight.T

    assert off(mlp(x), plain(x)) < TIGHT[dtype]
    for a, b in zip(
        torch.autograd.grad(mlp(x), learned, d), torch.autograd.grad(plain(x), learned, d), strict=True
    ):
        assert off(a, b) < TIGHT[dtype]


def test_a_fused_linear_names_the_matrix_rows_of_each_linear():
    fused = FusedLinear(4, {"q": 6, "k": 2, "v": 3}, bias=True)
    fused.reset_parameters()
    assert fused.slices == {"q": slice(0, 6), "k": slice(6, 8), "v": slice(8, 11)}
    assert fused.weight.shape == (11, 4)
    x = draw(5, 4, dtype=torch.float32)
    for rows in fused.slices.values():
        part = F.linear(x, fused.weight[rows], fused.bias[rows])
        assert off(fused(x)[:, rows], part) < TIGHT[torch.float32]
