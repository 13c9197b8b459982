"""Values and gradients equal those of torch's functions."""

import pytest
import torch
import torch.nn.functional as F

from lmmkit.model.cpu_ops import FEW, linear, rms_norm
from tests.support.fake_cuda import fake_cuda
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rms_norm_returns_the_type_that_it_was_given_also_on_a_card(dtype):
    assert rms_norm(torch.ones(3, 8, dtype=dtype), torch.ones(8), 1e-5).dtype == dtype
    with fake_cuda(), torch.autocast("cuda", torch.bfloat16):
        x, weight = torch.ones(3, 8, dtype=dtype, device="cuda"), torch.ones(8, device="cuda")
        assert rms_norm(x, weight, 1e-5).dtype == dtype


def test_a_frozen_norm_gets_no_gradient():
    x = draw(4, 8, dtype=torch.float32).requires_grad_()
    weight = torch.ones(8)
    rms_norm(x, weight, 1e-5).sum().backward()
    assert x.grad is not None and weight.grad is None


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("threads", [1, 3, 4])  # three do not share 40 rows of a weight
@pytest.mark.parametrize("rows", [1, 2, 5, FEW, FEW + 1])
def test_a_few_rows_without_a_graph_have_the_products_of_the_plain_linear(rows, threads, bias, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    source = torch.Generator().manual_seed(rows)
    x, weight = torch.randn(rows, 24, generator=source), torch.randn(40, 24, generator=source)
    shift = torch.randn(40, generator=source) if bias else None
    want = F.linear(x, weight, shift)
    with torch.no_grad():
        got = linear(x, weight, shift)
    assert got.is_contiguous() and torch.allclose(got, want, rtol=1e-6, atol=1e-6)
    assert torch.equal(linear(x, weight, shift), want)
