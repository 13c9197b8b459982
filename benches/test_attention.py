"""Attention alone, forward and backward: with the image's mass, without it, and with the whole map.

One sequence twice: 576 image rows among N, the last R rows ask for their mass.
"""

import pytest
import torch
from torch import Tensor

from benches.pairs import compare
from lmmkit.attention.backends import Backend, Sdpa
from lmmkit.attention.eager import Eager
from lmmkit.attention.forest import roots
from lmmkit.attention.interface import Heads
from lmmkit.attention.schedule import AttentionSpec

CPU = torch.device("cpu")
BATCH, HEADS, IMAGE = 2, 8, 576
CASES = [(700, 64, 64), (700, 128, 64), (2048, 64, 64), (2048, 128, 64), (2048, 128, 512)]


def call(backend: Backend, n: int, size: int, asking: int):
    """Returns one layer's attention on fixed inputs (outputs and gradients), with `asking` rows for the mass."""
    row_T = torch.arange(BATCH * n)
    key_T, last_R = row_T % n < IMAGE, row_T[(row_T % n >= n - asking)]
    attention_fn = backend.prepare(AttentionSpec(roots([n] * BATCH), key_T, last_R), CPU)
    draw = torch.Generator().manual_seed(0)
    qkv_TC = torch.randn(BATCH * n, 3 * HEADS * size, generator=draw)
    d_TC = torch.randn(BATCH * n, HEADS * size, generator=draw)
    cos = torch.ones(BATCH * n, 1, size // 2)

    def run() -> tuple[Tensor, Tensor]:
        given = qkv_TC.clone().requires_grad_()
        out_TC, mass_R = attention_fn(given * 1, Heads(HEADS, HEADS, size), (cos, 0 * cos))
        total = (out_TC * d_TC).sum() - (mass_R.mean() if asking else 0)
        return mass_R, torch.autograd.grad(total, given)[0]

    return run


@pytest.mark.parametrize(("n", "size", "asking"), CASES)
def test_mass_over_attention_alone(n, size, asking, benchmark):
    alone, mass = call(Sdpa(), n, size, 0), call(Sdpa(), n, size, asking)
    benchmark.extra_info.update(
        compare(alone, mass), sense="at most", gate=None, target=None, loss_diff=None, peer="attention alone"
    )
    benchmark.pedantic(mass, rounds=1)


@pytest.mark.parametrize(("n", "size", "asking"), CASES)
def test_mass_against_the_whole_map(n, size, asking, benchmark):
    ours, peer = call(Sdpa(), n, size, asking), call(Eager(), n, size, asking)
    diff = float((ours()[1] - peer()[1]).abs().max() / peer()[1].abs().max())
    assert diff < 5e-6
    benchmark.extra_info.update(
        compare(ours, peer),
        sense="at least",
        gate=None,
        target=None,
        loss_diff=diff,
        peer="eager, the N x N map",
    )
    benchmark.pedantic(ours, rounds=1)
