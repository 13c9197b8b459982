"""PyTorch's variable-length kernels: all that surrounds them, on stand-ins that keep their promises on a CPU."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lmmkit.attention.backends import Flash
from lmmkit.attention.eager import Eager
from tests.support.attention_cases import (
    CASES,
    CPU,
    TIGHT,
    Found,
    assert_close,
    inputs,
    of_backend,
    of_twin,
    unturned,
)


def _weights(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    """Returns the scores of one segment, [H, Q, M]: query head h reads key head h // (H / G)."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    score = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    return (
        score.masked_fill(~torch.ones(score.shape[1:], dtype=torch.bool).tril(), -torch.inf)
        if causal
        else score
    )


def _segments(ends_q: Tensor, ends_k: Tensor):
    for (a, b), (c, d) in zip(pairwise(ends_q.tolist()), pairwise(ends_k.tolist()), strict=True):
        yield slice(a, b), slice(c, d)


def forward(q, k, v, ends_q, ends_k, most_q, most_k, dropout, causal, debug):
    assert (dropout, debug) == (0.0, False) and ends_q.dtype == ends_k.dtype == torch.int32
    assert max(ends_q.diff()) <= most_q and max(ends_k.diff()) <= most_k
    out, lse_HQ = torch.empty_like(q), q.new_empty(q.shape[1], len(q))
    for rows, keys in _segments(ends_q, ends_k):
        score = _weights(q[rows], k[keys], causal)
        wide = v[keys].repeat_interleave(q.shape[1] // v.shape[1], 1)
        out[rows], lse_HQ[:, rows] = (
            torch.einsum("hqk,khd->qhd", score.softmax(-1), wide),
            score.logsumexp(-1),
        )
    return out, lse_HQ, None, None, None


def backward(d, q, k, v, out, lse_HQ, ends_q, ends_k, most_q, most_k, dropout, causal, seed, offset):
    """Takes the row term, and nothing else, from the output that is handed over."""
    assert lse_HQ.is_contiguous() and lse_HQ.shape == (q.shape[1], len(q))
    d_q, d_k, d_v = (torch.empty_like(x) for x in (q, k, v))
    groups = (k.shape[1], q.shape[1] // k.shape[1])
    for rows, keys in _segments(ends_q, ends_k):
        weight = (_weights(q[rows], k[keys], causal) - lse_HQ[:, rows, None]).exp()
        wide_k, wide_v = (x[keys].repeat_interleave(groups[1], 1) for x in (k, v))
        row_term = (d * out).sum(-1)[rows].T[..., None]
        d_score = weight * (torch.einsum("qhd,khd->hqk", d[rows], wide_v) - row_term) * q.shape[-1] ** -0.5
        d_q[rows] = torch.einsum("hqk,khd->qhd", d_score, wide_k)
        d_k[keys] = torch.einsum("hqk,qhd->khd", d_score, q[rows]).unflatten(1, groups).sum(2)
        d_v[keys] = torch.einsum("hqk,qhd->khd", weight, d[rows]).unflatten(1, groups).sum(2)
    return d_q, d_k, d_v


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", forward)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", backward)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("name", CASES)
def test_flash_on_stand_in_kernels_equals_the_twin(name, groups, kernels):
    case = CASES[name]()
    given = inputs(len(case.forest), groups)
    want = of_twin(case, given)
    for dtype, limit in TIGHT.items():
        assert_close(of_backend(Flash(), case, given, dtype), want, limit)


@pytest.mark.parametrize("name", ["packing", "ragged branches", "bidirectional block"])
def test_flash_may_leave_out_rows_that_are_not_read(name, kernels):
    case = CASES[name]()
    given, read_T = inputs(len(case.forest), 2), torch.arange(len(case.forest)) % 5 == 0
    found = []
    for backend in (Flash(), Eager()):
        attention_fn = backend.prepare(case.attention(read_T), CPU)
        rows = torch.arange(len(case.forest))[attention_fn.rows]
        place = torch.searchsorted(rows, read_T.nonzero()[:, 0])
        found.append(_read(attention_fn, given, place))
    assert_close(*found, 1e-12)


def _read(attention_fn, given, place: Tensor) -> Found:
    q, k, v = (x.clone().requires_grad_() for x in given[:3])
    out, mass = unturned(attention_fn)(q, k, v)
    gradient = torch.autograd.grad(
        [out[place], mass], [q, k, v], [given[3][: len(place)], given[4][: len(mass)]]
    )
    return Found(out[place], mass, *gradient)


def test_flash_reports_what_it_has_no_kernel_for():
    cuda = torch.device("cuda")
    assert Flash().why_not(CPU, torch.bfloat16) == "no kernels for cpu"
    assert [Flash().why_not(cuda, t) for t in (torch.bfloat16, torch.float16)] == ["", ""]
    assert [Flash().why_not(cuda, t) for t in (torch.float32, torch.float64)] == [
        "no kernel for float32",
        "no kernel for float64",
    ]
