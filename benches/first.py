"""The first minutes on a GPU: what has to hold before anything is measured.

Each check is caught on its own, so that one failure does not hide the others. Its row says what came out, and
is `broken` if it failed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import fmean

import torch
from torch import Tensor

from lmmkit.attention.backends import all_backends
from lmmkit.attention.eager import Eager
from lmmkit.attention.forest import roots
from lmmkit.attention.interface import Heads
from lmmkit.attention.schedule import AttentionSpec
from lmmkit.attention.trial import Backend, Conditions, deterministic_kernels, refusal
from lmmkit.model.decoder import Decoder, DecoderShape
from lmmkit.model.layers import Block
from tests.support import paper_objective
from tests.support.hf_weights import scramble
from tests.support.mass_share import kept
from tests.support.plain_twins import off
from tests.support.tiny_model import text_batch

CPU = torch.device("cpu")
# Of the error of eager in this number format. In bfloat16 a correct kernel had up to 1.59: sdpa without AVX-512.
MOST_ERROR = {torch.bfloat16: 2.0, torch.float32: 3.0}
RATIOS = (1e-2, 4e-3, 1e-3, 4e-4, 1e-4)
SAMPLES = (*paper_objective.CAPTIONS, *paper_objective.CHATS)
Check = Callable[[], tuple[bool, str]]  # whether it holds, and what came out


def first(bench) -> Iterator[dict]:
    """Checks backends, blocks, the mass gradient, waiting, determinism and empty micro-batches, in this order."""
    for what, check in _checks(bench):
        start = time.perf_counter()
        try:
            holds, value = check()
        except Exception as error:
            holds, value = False, f"{type(error).__name__}: {error}".splitlines()[0]
        yield {"what": what, "broken": not holds, "value": value, "s": time.perf_counter() - start}


def _checks(bench) -> Iterator[tuple[str, Check]]:
    device, dtypes = bench.device, (torch.bfloat16, torch.float32)
    for backend, dtype in itertools.product(all_backends(), dtypes):
        yield f"{backend.name} in {_short(dtype)}", partial(_runs, backend, device, dtype)
    running = {dtype: [b for b in all_backends() if not _reason(b, device, dtype)] for dtype in dtypes}
    for dtype in dtypes:
        for backend in running[dtype]:
            for rows, segments in itertools.product((31, 32) if bench.tiny else (31, 32, 64, 576), (1, 3)):
                what = f"a block on {backend.name} in {_short(dtype)}, {segments} x {rows} rows"
                yield what, partial(_block, backend, device, dtype, segments * [rows])
    for backend in running[torch.bfloat16]:
        yield f"share of the mass gradient kept by {backend.name}", partial(_share, bench, backend)
    for backend in running[bench.compute]:
        yield f"{backend.name}: a step does not wait for the device", partial(_no_wait, bench, backend)
    for backend in all_backends():
        yield f"{backend.name}: a deterministic step twice has the same bits", partial(_twice, bench, backend)
    for backend in running[bench.compute]:
        yield f"{backend.name}: an empty micro-batch", partial(_empty, bench, backend)


def _runs(backend: Backend, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    return True, _reason(backend, device, dtype) or "runs"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _reason(backend: Backend, device: torch.device, dtype: torch.dtype, deterministic: bool = False) -> str:
    return refusal(backend, Conditions(device, dtype, Heads(4, 2, 64), Heads(2, 2, 8), deterministic))


def _block(
    backend: Backend, device: torch.device, dtype: torch.dtype, lengths: list[int]
) -> tuple[bool, str]:
    """Compares the errors of a block's values and gradients with those of eager in the same number format, over
    all heads alike and grouped, with and without norms of queries and keys."""
    worst = 0.0
    for kv_heads, qk_norm in itertools.product((4, 2), (False, True)):
        shape = DecoderShape(
            vocab=8, width=256, depth=1, heads=4, kv_heads=kv_heads, head_size=64, mlp=384, context=4096,
            qk_norm=qk_norm,
        )  # fmt: skip
        block = Decoder(shape).blocks[0]
        scramble(block, 0)
        exact = _values(block, Eager(), CPU, torch.float64, lengths)
        mine, plain = (_values(block, each, device, dtype, lengths) for each in (backend, Eager()))
        for got, peer, want in zip(mine, plain, exact, strict=True):
            worst = max(worst, off(got, want) / max(off(peer, want), torch.finfo(dtype).eps))
    return worst <= MOST_ERROR[dtype], f"{worst:.2f} of eager's error"


def _values(
    block: Block, backend: Backend, device: torch.device, dtype: torch.dtype, lengths: list[int]
) -> list[Tensor]:
    """Returns a block's outputs, mass and gradients of input and weights."""
    T, draw = sum(lengths), torch.Generator().manual_seed(0)
    row_T = torch.arange(T) % lengths[0]
    spec = AttentionSpec(
        roots(lengths), (row_T >= 3) & (row_T < 12), torch.arange(T)[row_T >= lengths[0] - 9]
    )
    x_TD, d_TD = (torch.randn(T, 256, generator=draw).to(device) for _ in range(2))
    angle = torch.randn(T, 1, 32, generator=draw).to(device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    block = block.to(device, wide)
    x_TD, d_TD, cos, sin = (x.to(wide) for x in (x_TD.requires_grad_(), d_TD, angle.cos(), angle.sin()))
    with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
        out_TD, mass_R = block(x_TD, (cos, sin), backend.prepare(spec, device))
    given = [x_TD, *block.parameters()]
    return [out_TD, mass_R, *torch.autograd.grad([out_TD, mass_R], given, [d_TD, torch.ones_like(mass_R)])]


def _share(bench, backend: Backend) -> tuple[bool, str]:
    seeds = range(1, 2 if bench.tiny else 5)
    shares = {ratio: fmean(kept(ratio, seed, backend, bench.device) for seed in seeds) for ratio in RATIOS}
    holds = all(abs(share - 1) < 0.1 for ratio, share in shares.items() if ratio >= 4e-4)
    return holds, ", ".join(f"{ratio:.0e}: {share:.2f}" for ratio, share in shares.items())


def _no_wait(bench, backend: Backend) -> tuple[bool, str]:
    """Runs a step, once to warm up, then with an error wherever the host would wait for the device."""
    made, batch = _objective(bench, backend), paper_objective.packed(SAMPLES)[0].to(bench.device)
    paper_objective.learned(made, [batch])
    if bench.device.type != "cuda":
        return True, "nothing to wait for"
    torch.cuda.set_sync_debug_mode("error")
    try:
        paper_objective.learned(made, [batch])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return True, "it does not"


def _twice(bench, backend: Backend) -> tuple[bool, str]:
    if reason := _reason(backend, bench.device, bench.compute, deterministic=True):
        return True, reason
    made, batch = _objective(bench, backend), paper_objective.packed(SAMPLES)[0].to(bench.device)
    with deterministic_kernels(True):
        (_, once), (_, again) = (paper_objective.learned(made, [batch]) for _ in range(2))
    differ = [name for name, gradient in once.items() if not torch.equal(gradient, again[name])]
    return not differ, f"{len(differ)} of {len(once)} gradients differ"


def _empty(bench, backend: Backend) -> tuple[bool, str]:
    made, batch = _objective(bench, backend), text_batch([]).to(bench.device)
    with made.computing(bench.device):
        out = made.lmm(batch, {})
    out.hidden_WD.sum().backward()
    return out.hidden_WD.shape[0] == 0, f"states {list(out.hidden_WD.shape)}"


def _objective(bench, backend: Backend):
    made = paper_objective.objective(dtype=torch.float32, backend=backend).to(bench.device)
    made.compute = bench.compute
    return made
