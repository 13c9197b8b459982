"""Norm and gated MLP as nodes of their own: values and gradients of torch's plain parts."""

import pytest
import torch
import torch.nn.functional as F

from lmmkit.model import layers
from lmmkit.model.init import init
from lmmkit.model.layers import FusedLinear, SwiGLU, rms_norm
from tests.support.plain_twins import off

TIGHT = {torch.float64: 1e-12, torch.float32: 5e-6}


def draw(*sizes, dtype):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", TIGHT)
@pytest.mark.parametrize("shape", [(7, 16), (5, 3, 16), (1, 6)])
def test_rms_norm_is_torchs(shape, dtype):
    x, d = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype).flip(0)
    weight = draw(shape[-1], dtype=dtype)
    got, want = (
        (f(a, b), *torch.autograd.grad(f(a, b), (a, b), d))
        for f in (lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: F.rms_norm(x, w.shape, w, 1e-5))
        for a, b in [(x.clone().requires_grad_(), weight.clone().requires_grad_())]
    )
    for a, b in zip(got, want, strict=True):
        assert off(a, b) < TIGHT[dtype]


def test_a_frozen_norm_gets_no_gradient():
    x = draw(4, 8, dtype=torch.float32).requires_grad_()
    weight = torch.ones(8)
    rms_norm(x, weight, 1e-5).sum().backward()
    assert x.grad is not None and weight.grad is None


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


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("threads", [1, 3, 4])  # three do not share 40 rows of a weight
@pytest.mark.parametrize("rows", [1, 2, 5, layers.FEW, layers.FEW + 1])
def test_a_few_rows_without_a_graph_have_the_products_of_the_plain_linear(rows, threads, bias, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    source = torch.Generator().manual_seed(rows)
    x, weight = torch.randn(rows, 24, generator=source), torch.randn(40, 24, generator=source)
    shift = torch.randn(40, generator=source) if bias else None
    want = F.linear(x, weight, shift)
    with torch.no_grad():
        got = layers.linear(x, weight, shift)
    assert got.is_contiguous() and torch.allclose(got, want, rtol=1e-6, atol=1e-6)
    assert torch.equal(layers.linear(x, weight, shift), want)


def test_a_fused_linear_names_the_matrix_rows_of_each_linear():
    fused = FusedLinear(4, {"q": 6, "k": 2, "v": 3}, bias=True)
    fused.reset_parameters()
    assert fused.slices == {"q": slice(0, 6), "k": slice(6, 8), "v": slice(8, 11)}
    assert fused.weight.shape == (11, 4)
    x = draw(5, 4, dtype=torch.float32)
    for rows in fused.slices.values():
        part = F.linear(x, fused.weight[rows], fused.bias[rows])
        assert off(fused(x)[:, rows], part) < TIGHT[torch.float32]
