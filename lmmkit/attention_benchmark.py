"""Measures every attention backend on the batches of a recipe: time, memory, and error against float64."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmmkit.api.batch import Batch
from lmmkit.attention.backends import all_backends
from lmmkit.attention.eager import Eager
from lmmkit.attention.interface import AttentionFn, Heads
from lmmkit.attention.sdpa import Sdpa
from lmmkit.attention.trial import Backend, Conditions, refusal
from lmmkit.model.decoder import DecoderShape
from lmmkit.model.rope import rope_angles
from lmmkit.progress import counted

REPEATS = 5
MOST_MAP = 4 << 30  # bytes; a larger attention map is not tried
CPU = torch.device("cpu")


@dataclass(frozen=True)
class BackendTiming:
    """Holds the figures of one backend for one layer's attention, forward and backward: median seconds for
    all batches, peak bytes above the inputs (CUDA only), and the worst relative errors against float64
    of outputs, mass and gradient. `why_not` gives the reason if there are none."""

    backend: str
    why_not: str = ""
    seconds: float | None = None
    peak: int | None = None
    error: tuple[float, float, float] | None = None


def reasons(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Returns for each backend, best first, why it cannot run on `device`; "" if it can."""
    backends = counted(f"trying attention backends on {device.type}", all_backends())
    return {backend.name: refusal(backend, Conditions(device, dtype)) for backend in backends}


def measure(
    shape: DecoderShape, batches: Sequence[Batch], device: torch.device, dtype: torch.dtype
) -> list[BackendTiming]:
    """Measures all backends on the same random projections, in turns, so that machine load affects all."""
    cases = [Case(shape, batch, device, dtype) for batch in batches]
    at = Conditions(device, dtype, Heads(shape.heads, shape.kv_heads, shape.head_size))
    against = {b: refusal(b, at) or _too_large(b, shape, batches) for b in all_backends()}
    attention_fns = {
        b: [b.prepare(batch.attention, device) for batch in batches] for b, why in against.items() if not why
    }
    times: dict[Backend, list[float]] = {backend: [] for backend in attention_fns}
    turns = [backend for _ in range(1 + REPEATS) for backend in attention_fns]
    for backend in counted("timing", turns):
        _wait(device)
        start = time.perf_counter()
        for case, attention_fn in zip(cases, attention_fns[backend], strict=True):
            case.run(attention_fn)
        _wait(device)
        times[backend].append(time.perf_counter() - start)
    found = []
    for backend in counted("comparing with float64", against):
        if why := against[backend]:
            found.append(BackendTiming(backend.name, why))
            continue
        peaks = [
            case.peak(attention_fn) for case, attention_fn in zip(cases, attention_fns[backend], strict=True)
        ]
        errors = [
            case.errors(attention_fn)
            for case, attention_fn in zip(cases, attention_fns[backend], strict=True)
        ]
        worst = tuple(max(column) for column in zip(*errors, strict=True))
        seconds = statistics.median(times[backend][1:])
        found.append(
            BackendTiming(backend.name, "", seconds, max(peaks) if device.type == "cuda" else None, worst)
        )  # type: ignore[arg-type]
    return found


class Case:
    """Runs the attention of one batch on random projections, and compares it with float64."""

    def __init__(self, shape: DecoderShape, batch: Batch, device: torch.device, dtype: torch.dtype):
        self.attention, self.device = batch.attention, device
        self.heads = Heads(shape.heads, shape.kv_heads, shape.head_size)
        draw = torch.Generator().manual_seed(0)
        T, K = len(batch), shape.head_size
        qkv_TC = torch.randn(T, (shape.heads + 2 * shape.kv_heads) * K, generator=draw)
        d_TC = torch.randn(T, shape.heads * K, generator=draw)
        d_R = torch.randn(len(batch.attention.row_R), generator=draw)
        turn = rope_angles(batch.forest.pos_T, K, shape.rope)
        self.given = (*(x.to(device, dtype) for x in (qkv_TC, d_TC, *turn)), d_R.to(device))

    def run(
        self, attention_fn: AttentionFn, given: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (outputs, mass, gradient of the projections)."""
        qkv_TC, d_TC, cos, sin, d_R = given or self.given
        leaf = qkv_TC.clone().requires_grad_()
        out_TC, mass_R = attention_fn(
            leaf * 1, self.heads, (cos, sin)
        )  # RoPE is applied in place, to this copy
        (gradient,) = torch.autograd.grad([out_TC, mass_R], leaf, [d_TC, d_R.to(mass_R)])
        return out_TC.detach(), mass_R.detach(), gradient

    def errors(self, attention_fn: AttentionFn) -> list[float]:
        """Returns max|a - b| / max|b| for outputs, mass and gradient, where b is float64."""
        exact = self.run(Sdpa().prepare(self.attention, CPU), tuple(x.cpu().double() for x in self.given))
        pairs = zip(self.run(attention_fn), exact, strict=True)
        return [
            float((a.cpu().double() - b).abs().max() / b.abs().max()) if b.numel() else 0.0 for a, b in pairs
        ]

    def peak(self, attention_fn: AttentionFn) -> int:
        """Returns the peak bytes on a CUDA device above those allocated before; 0 on other devices."""
        if self.device.type != "cuda":
            return 0
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self.run(attention_fn)
        return torch.cuda.max_memory_allocated(self.device) - before


def _too_large(backend: Backend, shape: DecoderShape, batches: Sequence[Batch]) -> str:
    most = max(4 * shape.heads * len(batch) ** 2 for batch in batches)
    if isinstance(backend, Eager) and most > MOST_MAP:
        return f"its map of {most / 2**30:.1f} GiB is over the {MOST_MAP >> 30} GiB tried here"
    return ""


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
