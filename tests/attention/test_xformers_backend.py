"""xformers: its biases and all that surrounds its kernels on a CPU, the kernels where there is CUDA."""

import ctypes
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lmmkit.attention import xformers_backend
from lmmkit.attention.backends import Flash, Sdpa, Xformers
from lmmkit.attention.eager import Eager
from lmmkit.attention.xformers_backend import loaded
from tests.support.attention_cases import (  # fmt: skip
    CASES,
    CPU,
    CUDA,
    TIGHT,
    Case,
    Found,
    assert_close,
    inputs,
    of_backend,
    of_twin,
)
from tests.support.plain_twins import off


def xformers_parts(case: Case) -> list:
    return list(xformers_backend.packed(case.attention(), CPU))


@pytest.mark.skipif(bool(loaded().problem), reason=loaded().problem or "xformers is here")
@pytest.mark.parametrize("name", CASES)
def test_xformers_biases_materialised_are_the_rule(name):
    case = CASES[name]()
    times = torch.zeros(len(case.forest), len(case.forest), dtype=torch.int64)
    for part in xformers_parts(case):
        row_Q, row_K = (each.of(torch.arange(len(case.forest)))[0] for each in (part.q, part.k))
        bias = part.kernel.bias.materialize((len(row_Q), len(row_K)))
        assert set(bias.unique().tolist()) <= {0.0, -torch.inf}
        times[row_Q[:, None], row_K] += (bias == 0).long()
        asks = (bias == 0)[torch.isin(row_Q, case.row_R)].any(0)
        assert (case.key_T[row_K][asks] == part.key).all()
    assert (times == case.forest.see().long()).all()


class Kernels:
    """What xformers' kernels promise, on a CPU: FA2 for all but float32, which is CUTLASS's.

    The backward takes its row term from the output it is handed, and the log-sum-exp only in the
    layout by which xformers chooses the kernel of that type.
    """

    def __init__(self, fmha):
        self.fmha, self.attn_bias = fmha, fmha.attn_bias

    @staticmethod
    def memory_efficient_attention_forward_requires_grad(q, k, v, attn_bias):
        score = torch.einsum("qhd,khd->hqk", q[0], k[0]) * q.shape[-1] ** -0.5
        score = score + attn_bias.materialize(score.shape[1:]).to(q)
        out, lse_HQ = torch.einsum("hqk,khd->qhd", score.softmax(-1), v[0]), score.logsumexp(-1)
        if q.dtype != torch.float32:
            return out[None], lse_HQ[None]
        parts = lse_HQ.split(_lengths(attn_bias), -1)
        return out[None], torch.stack([F.pad(p, (0, 64 - p.shape[1]), value=torch.inf) for p in parts])

    def memory_efficient_attention_backward(self, d, out, lse, q, k, v, attn_bias):
        given = self.fmha.Inputs(query=q, key=k, value=v, attn_bias=attn_bias)
        packed = self.fmha._detect_lse_packed_or_raise(lse, given)
        kernel = self.fmha.cutlass.BwOp if q.dtype == torch.float32 else self.fmha.flash.BwOp
        assert packed in (None, kernel.VARLEN_LSE_PACKED), "xformers would find no kernel"
        n = _lengths(attn_bias)
        rows = (
            [lse[0, :, : sum(n)]] if packed is not False else [x[:, :m] for x, m in zip(lse, n, strict=True)]
        )
        lse_HQ = torch.cat(rows, 1)
        score = torch.einsum("qhd,khd->hqk", q[0], k[0]) * q.shape[-1] ** -0.5
        weight = (score + attn_bias.materialize(score.shape[1:]).to(q) - lse_HQ[..., None]).exp()
        row_term = (d * out).sum(-1)[0].T[..., None]
        d_score = weight * (torch.einsum("qhd,khd->hqk", d[0], v[0]) - row_term) * q.shape[-1] ** -0.5
        d_q, d_k = torch.einsum("hqk,khd->qhd", d_score, k[0]), torch.einsum("hqk,qhd->khd", d_score, q[0])
        return d_q[None], d_k[None], torch.einsum("hqk,qhd->khd", weight, d[0])[None]


def _lengths(bias) -> list[int]:
    starts = bias.q_seqinfo.seqstart_py
    return [b - a for a, b in pairwise(starts)]


@pytest.mark.skipif(bool(loaded().problem), reason=loaded().problem or "xformers is here")
@pytest.mark.parametrize("name", CASES)
def test_xformers_on_stand_in_kernels_equals_the_twin(name, monkeypatch):
    case = CASES[name]()
    given = inputs(len(case.forest), 2)
    want = of_twin(case, given)
    stand_in = loaded()._replace(fmha=Kernels(loaded().fmha))
    monkeypatch.setattr(xformers_backend, "loaded", lambda: stand_in)
    for dtype, limit in TIGHT.items():
        assert_close(of_backend(Xformers(), case, given, dtype), want, limit)


@pytest.mark.skipif(bool(loaded().problem), reason=loaded().problem or "xformers is here")
def test_xformers_has_its_cuda_kernels_beside_a_torch_for_another_cuda():
    """Its library links to the CUDA runtime of its own build, which is loaded before it."""
    from xformers import _cpp_lib

    assert _cpp_lib._cpp_library_load_exception is None and _cpp_lib._built_with_cuda


def test_the_cuda_runtime_comes_from_its_package_where_the_system_has_none(monkeypatch):
    libraries = []

    def load(name: str, mode: int):
        if "/" not in name:
            raise OSError(name)
        libraries.append((Path(name), mode))

    monkeypatch.setattr(xformers_backend.ctypes, "CDLL", load)
    monkeypatch.setattr(xformers_backend, "files", lambda name: None)
    xformers_backend._load_cuda_runtime()
    assert libraries == []  # its kernels report what they lack once they are tried
    if not loaded().problem:
        monkeypatch.undo()
        monkeypatch.setattr(xformers_backend.ctypes, "CDLL", load)
        xformers_backend._load_cuda_runtime()
        ((path, mode),) = libraries
        assert path.name == "libcudart.so.12" and path.is_file() and mode == ctypes.RTLD_GLOBAL


gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@gpu
@needs_cuda
@pytest.mark.parametrize("backend", [Xformers(), Sdpa()], ids=lambda b: b.name)
@pytest.mark.parametrize("name", CASES)
def test_cuda_float32_equals_the_twin(name, backend, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    case = CASES[name]()
    given = inputs(len(case.forest), 2)
    assert_close(of_backend(backend, case, given, torch.float32, CUDA), of_twin(case, given), 5e-6)


@gpu
@needs_cuda
@pytest.mark.parametrize("backend", [Xformers(), Flash(), Sdpa()], ids=lambda b: b.name)
@pytest.mark.parametrize(
    "name", ["packing", "ragged branches", "multiples of 32 rows", "random 1", "random 2"]
)
def test_cuda_bfloat16_errs_no_more_than_eager_in_bfloat16(name, backend):
    case = CASES[name]()
    given = [x.bfloat16().double() for x in inputs(len(case.forest), 2)]
    want = of_twin(case, given)
    got, plain = (of_backend(b, case, given, torch.bfloat16, CUDA) for b in (backend, Eager()))
    for field, ours, peer, exact in zip(Found._fields, got, plain, want, strict=True):
        assert off(ours, exact) <= 1.2 * off(peer, exact) + 1e-6, field
