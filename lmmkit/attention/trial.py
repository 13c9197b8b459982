"""Whether a backend runs here: it is tried, with a small forward and backward pass, and compared with `eager`.

That a backend imports says little: its kernels may be built for another CUDA, refuse a head size, or have no
deterministic form, and all that shows only when they run.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lmmkit.attention.eager import Eager
from lmmkit.attention.forest import blocks, roots
from lmmkit.attention.interface import AttentionFn, Heads, Rotary, no_rotation
from lmmkit.attention.schedule import AttentionSpec

MOST_ERROR = 0.1  # of the largest value: bfloat16 errs by a tenth of this, a wrong layout by all of it
LONGEST = 600  # characters of a reason
CPU = torch.device("cpu")
# Two documents, one with an image whose mass is read. Some kernels treat multiples of 32 rows in another way.
_ROW_T = torch.arange(32 + 9, device=CPU)
SPEC = AttentionSpec(roots((32, 9)), (_ROW_T >= 3) & (_ROW_T < 12), _ROW_T[20:30])
IMAGES = AttentionSpec(blocks((32, 9)), _ROW_T < 0, _ROW_T[:0])  # two packed images of unlike sizes


class Conditions(NamedTuple):
    """Describes where attention is to run: device and number format, heads of the decoder and of the encoder
    (None: it has attention of its own, or there is none), whether all kernels have to be deterministic, and whether
    the encoder gets packed images, of unlike sizes."""

    device: torch.device
    dtype: torch.dtype
    decoder: Heads = Heads(2, 2, 64)
    encoder: Heads | None = None
    deterministic: bool = False
    packed_images: bool = False


class Backend(Protocol):
    """Defines the interface of an attention backend."""

    @property
    def name(self) -> str:
        """Returns the name used in recipes."""
        ...

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str:
        """Returns why the backend cannot run there, as far as is known without a trial; else empty."""
        ...

    def prepare(self, spec: AttentionSpec, device: torch.device) -> AttentionFn:
        """Returns the attention function for `spec`."""
        ...

    def dense(self, q_INHK: Tensor, k_INHK: Tensor, v_INHK: Tensor) -> Tensor:
        """Returns bidirectional attention within each of I sequences of equal length: [I, N, H, K]."""
        ...


@functools.cache
def refusal(backend: Backend, at: Conditions) -> str:
    """Returns why the backend cannot be used under these conditions; empty if it can.

    It is tried once in each process, if nothing is known against it. Raises the error of too little memory, which says
    nothing about the backend.
    """
    if reason := backend.why_not(at.device, at.dtype):
        return reason
    try:
        with _undisturbed(at):
            mine = _results(backend, at, at.device, at.dtype)
            worst = max(map(_difference, mine, _results(Eager(), at, CPU, torch.float64)))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a kernel may refuse in any way: what it says is the reason
        return _brief(str(error)) or type(error).__name__
    return "" if worst < MOST_ERROR else f"its results are off by {worst:.0%} of the largest value"


@contextmanager
def deterministic_kernels(asked: bool) -> Iterator[None]:
    """Makes torch refuse nondeterministic kernels within the block, if asked.

    cuBLAS is deterministic only with a workspace of a fixed size. It reads the size from the environment when
    it starts.
    """
    if not asked:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def _undisturbed(at: Conditions) -> Iterator[None]:
    """Switches off what the caller may have on: autocast, inference mode, another default device."""
    with (
        torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"),
        torch.autocast(at.device.type, enabled=False), deterministic_kernels(at.deterministic),
    ):  # fmt: skip
        yield


def _results(backend: Backend, at: Conditions, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Returns what a backend computes of values that `at.dtype` has."""
    found = _packed(backend, at.decoder, at, device, dtype)
    if at.encoder is None:
        return found
    if at.packed_images:
        found += _images(backend, at.encoder, at, device, dtype)
    return found + _dense(backend, at.encoder, at, device, dtype)


def _packed(
    backend: Backend, heads: Heads, at: Conditions, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Returns outputs, mass and gradients of `SPEC`."""
    leaf, d_TC, unturned = _rows(heads, at, device, dtype)
    out_TC, mass_R = backend.prepare(SPEC, device)(leaf * 1, heads, unturned)
    gradient = torch.autograd.grad([out_TC, mass_R], leaf, [d_TC, torch.ones_like(mass_R)])
    return [out_TC, mass_R, *gradient]


def _images(
    backend: Backend, heads: Heads, at: Conditions, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Returns outputs and gradients of `IMAGES`."""
    leaf, d_TC, unturned = _rows(heads, at, device, dtype)
    out_TC, _ = backend.prepare(IMAGES, device)(leaf * 1, heads, unturned)
    return [out_TC, *torch.autograd.grad(out_TC, leaf, d_TC)]


def _rows(
    heads: Heads, at: Conditions, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Rotary]:
    """Returns packed projections of as many rows as the specs have, a gradient of their outputs, and no rotation."""
    T = len(_ROW_T)
    sizes = (T, (heads.q + 2 * heads.kv) * heads.size), (T, heads.q * heads.size)
    qkv_TC, d_TC = (x.to(device, dtype) for x in _drawn(at.dtype, *sizes))
    return qkv_TC.requires_grad_(), d_TC, no_rotation(T, heads, device)


def _dense(
    backend: Backend, heads: Heads, at: Conditions, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Returns outputs and gradients of two short sequences that see each other completely."""
    qkv_INC, d_INHK = (
        x.to(device, dtype)
        for x in _drawn(at.dtype, (2, 33, 3 * heads.q * heads.size), (2, 33, heads.q, heads.size))
    )
    leaf = qkv_INC.requires_grad_()
    out_INHK = backend.dense(*(x.unflatten(-1, (heads.q, -1)) for x in leaf.chunk(3, -1)))
    return [out_INHK, *torch.autograd.grad(out_INHK, leaf, d_INHK)]


def _drawn(rounded: torch.dtype, *sizes: Sequence[int]) -> list[Tensor]:
    """Returns random values that this number format has."""
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=draw).to(rounded) for size in sizes]


def _difference(got: Tensor, want: Tensor) -> float:
    """Returns max|got - want| / max|want|; infinite where one is not a number."""
    off = (got.detach().cpu().double() - want.detach()).abs().max() / want.detach().abs().max()
    return float(off.nan_to_num(torch.inf))


def _brief(text: str) -> str:
    """Returns a message in one line, without a list of `name : value` (xformers' of its inputs)."""
    words = " ".join(" ".join(line for line in text.splitlines() if " : " not in line).split())
    return words if len(words) <= LONGEST else words[:LONGEST] + " ..."
