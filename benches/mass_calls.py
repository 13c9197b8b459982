"""Compares two ways to the attention mass on a CPU: keys cut at image rows (lmmkit's), and one extra call.

python -m benches.mass_calls [--pairs 15] [--tiny]

The extra call takes the asking rows onto image rows alone and gives the log-sum-exp of those keys; the other
calls are those of plain attention. Backward, the plain calls get the row term D + g m, and the extra call the
row term -g with no gradient of the output. Prints the largest errors from the twin in float64, the share of the
mass's gradient that bfloat16 keeps, and the times of steps. LAB.md has the results.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from benches import workload
from benches.pairs import compare
from lmmkit.attention.forest import expand
from lmmkit.attention.interface import ALL, AttentionFn, apply_rope_, moved, ungrouped
from lmmkit.attention.merge import PartialAttention, hand_over, merge_partials
from lmmkit.attention.schedule import AttentionSpec, Call
from lmmkit.attention.sdpa import _CPU, Sdpa, _parts
from tests.support.attention_cases import CASES, TIGHT, Found, inputs, of_backend, of_twin
from tests.support.mass_share import kept
from tests.support.plain_twins import off

HANDED = 2.0**40  # d is g over this in the extra call, so the output that gives the row term -g is -HANDED


@dataclass(frozen=True)
class ExtraCall:
    """Computes the mass by an extra call of `sdpa`."""

    name: str = "extra call"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str:
        return ""

    def dense(self, q_INHK: Tensor, k_INHK: Tensor, v_INHK: Tensor) -> Tensor:
        return Sdpa().dense(q_INHK, k_INHK, v_INHK)

    def prepare(self, spec: AttentionSpec, device: torch.device) -> AttentionFn:
        none = torch.zeros(len(spec.forest), dtype=torch.bool)
        cut = AttentionSpec(spec.forest, spec.key_T, spec.row_R, none)
        calls = tuple(call for call in cut.calls if call.key)
        if not calls:
            return Sdpa().prepare(spec, device)
        read_T = None if spec.read_T is None else spec.read_T.index_fill(0, spec.row_R, True)
        plain = AttentionSpec(spec.forest, none, torch.empty(0, dtype=torch.int64), read_T)
        row_X = np.unique(np.concatenate([expand(call.q, call.n) for call in calls]))
        asks_R = np.isin(spec.row_R.numpy(), row_X)  # the others attend to no image row
        row_R = spec.row_R.numpy()[asks_R]
        made = _Calls(
            plain=list(_parts(plain, _CPU, device)), extra=list(_parts(_KeyCalls(calls, row_X), _CPU, device)),
            rows=ALL if plain.row_W is None else moved(plain.row_W, device), asks_R=moved(asks_R, device),
            place_X=moved(plain.places(row_X), device), place_R=moved(plain.places(row_R), device),
            among_R=moved(np.searchsorted(row_X, row_R), device),
        )  # fmt: skip
        return AttentionFn(made.rows, lambda qkv, heads, rotary: _Mass.apply(qkv, *rotary, heads, made))


@dataclass(frozen=True)
class _KeyCalls:
    """Holds the calls onto image rows, whose queries are numbered among `row_X`."""

    calls: Sequence[Call]
    row_X: np.ndarray

    def places(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.row_X, rows)


@dataclass(frozen=True, kw_only=True)
class _Calls:
    """Holds the plain parts, the extra ones, the output rows, the queries of the extra call and the asking rows."""

    plain: Sequence[PartialAttention]
    extra: Sequence[PartialAttention]
    rows: Tensor | slice
    asks_R: Tensor
    place_X: Tensor
    place_R: Tensor
    among_R: Tensor


class _Mass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv_TC, cos, sin, heads, calls):
        qkv_TC = qkv_TC.detach()
        apply_rope_(heads.queries_and_keys(qkv_TC), cos, sin)
        q, k, v = heads.split(qkv_TC)
        q = q[calls.rows]
        wide = torch.promote_types(q.dtype, torch.float32)
        out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=wide)
        for part in calls.plain:
            part_out, part_lse = part.kernel.forward(part.q.of(q), *(part.keys(x, heads.q) for x in (k, v)))
            if not part.own:
                part_out, part_lse = merge_partials(part.q.of(out), part.q.of(lse), part_out, part_lse)
            part.q.put(out, part_out)
            part.q.put(lse, part_lse)
        q_XHK = q[calls.place_X]
        key_lse = torch.full(q_XHK.shape[:2], -torch.inf, dtype=wide)
        for part in calls.extra:
            _, part_lse = part.kernel.forward(part.q.of(q_XHK), *(part.keys(x, heads.q) for x in (k, v)))
            part.q.put(key_lse, torch.logaddexp(part.q.of(key_lse), part_lse))
        mass_RH = (key_lse[calls.among_R] - lse[calls.place_R]).exp()
        ctx.save_for_backward(qkv_TC, cos, sin, out, lse, mass_RH)
        ctx.heads, ctx.calls = heads, calls
        mass_R = mass_RH.new_zeros(len(calls.asks_R)).masked_scatter(calls.asks_R, mass_RH.mean(-1))
        return out.flatten(1), mass_R

    @staticmethod
    @once_differentiable
    def backward(ctx, d_WC, d_mass_R):
        qkv_TC, cos, sin, out, lse, mass_RH = ctx.saved_tensors
        heads, calls = ctx.heads, ctx.calls
        q, k, v = heads.split(qkv_TC)
        q, whole = q[calls.rows], isinstance(calls.rows, slice)
        g_RH = (d_mass_R[calls.asks_R] / heads.q)[:, None].to(mass_RH).expand_as(mass_RH)
        d, (handed,) = hand_over(
            d_WC.unflatten(1, (-1, heads.size)), out, calls.place_R, [[(calls.place_R, g_RH * mass_RH)]]
        )
        d_qkv_TC = torch.empty_like(qkv_TC) if whole else torch.zeros_like(qkv_TC)
        d_q, d_k, d_v = heads.split(d_qkv_TC)
        to_q = d_q if whole else torch.empty_like(q)
        for part in calls.plain:
            keys = [part.keys(x, heads.q) for x in (k, v)]
            grads = part.kernel.backward(
                part.q.of(d), part.q.of(q), *keys, part.q.of(handed), part.q.lse_of(lse)
            )
            (part.q.put if part.own else part.q.add)(to_q, grads[0])
            write = part.k.put if part.own and whole else part.k.add
            for to, grad in zip((d_k, d_v), grads[1:], strict=True):
                write(to, ungrouped(grad, heads.kv))
        q_XHK, lse_XH = q[calls.place_X], lse[calls.place_X]
        d_XHK, out_XHK, to_XHK = (torch.zeros_like(q_XHK) for _ in range(3))
        d_XHK[calls.among_R, :, 0], out_XHK[..., 0] = (g_RH / HANDED).to(d_XHK), -HANDED
        for part in calls.extra:
            keys = [part.keys(x, heads.q) for x in (k, v)]
            given = part.q.of(d_XHK), part.q.of(q_XHK), *keys, part.q.of(out_XHK), part.q.lse_of(lse_XH)
            grad_q, grad_k, _ = part.kernel.backward(*given)
            part.q.add(to_XHK, grad_q)
            part.k.add(d_k, ungrouped(grad_k, heads.kv))
        to_q.index_add_(0, calls.place_X, to_XHK)
        if not whole:
            d_q[calls.rows] = to_q
        apply_rope_(heads.queries_and_keys(d_qkv_TC), cos, -sin)
        return d_qkv_TC, None, None, None, None


def worst_errors(backend, dtype: torch.dtype) -> dict[str, float]:
    """Returns the largest error of each result over all cases of the tests, from the twin in float64."""
    worst = dict.fromkeys(Found._fields, 0.0)
    for made in CASES.values():
        case = made()
        for groups in (1, 2, 4):
            given = inputs(len(case.forest), groups)
            pairs = zip(of_backend(backend, case, given, dtype), of_twin(case, given), strict=True)
            errors = [off(got, want) for got, want in pairs]
            worst = {name: max(worst[name], e) for name, e in zip(worst, errors, strict=True)}
    return worst


# Sizes like the quickstart's, and of LLaVA's samples: 700 rows, of which 576 of an image.
CONFIGS = {
    "small": workload.Config(
        samples=8, side=6, question=8, answer=(14, 24), vision=(96, 4, 3), text=(128, 4, 4, 352), permutations=24
    ),
    "llava": workload.Config(samples=4, side=24, question=60, answer=(60, 64)),
}  # fmt: skip


def step_ratio(name: str, method: str, pairs: int) -> str:
    """Describes the time of a step with the extra call over that with cut keys."""
    works = [workload.work(name, method) for _ in range(2)]
    works[0].ours.lmm.backend = ExtraCall()
    steps = [workload.our_step(work) for work in works]
    losses = [step() for step in steps]
    found = compare(steps[1], steps[0], pairs)
    return (
        f"{name:11} {method:9} {len(works[0].batch()):5} rows: extra call / merge {found['ratio']:.3f} "
        f"({found['low']:.3f} to {found['high']:.3f}, {found['pairs']} pairs; {found['peer_seconds']:.3f} s and "
        f"{found['seconds']:.3f} s a step), losses {losses[0]:.7f} and {losses[1]:.7f}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the three comparisons."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to see that all of it runs")
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    backends = (ExtraCall(), Sdpa())
    for dtype in TIGHT:
        for name, backend in zip(("extra call", "merge"), backends, strict=True):
            errors = ", ".join(f"{k} {e:.1e}" for k, e in worst_errors(backend, dtype).items())
            print(f"largest error, {dtype}, {name}: {errors}", flush=True)
    for ratio in (1e-2, 4e-3, 1e-3, 4e-4, 1e-4)[: 1 if asked.tiny else 5]:
        shares = [fmean(kept(ratio, seed, b) for seed in range(1, 2 if asked.tiny else 5)) for b in backends]
        print(
            f"share kept in bfloat16 at {ratio:.0e}: extra call {shares[0]:.2f}, merge {shares[1]:.2f}",
            flush=True,
        )
    workload.CONFIGS |= CONFIGS
    for name in ("small",) if asked.tiny else CONFIGS:
        if asked.tiny:
            workload.CONFIGS[name] = replace(CONFIGS[name], samples=2)
        for method in ("guided", "direct"):
            print(step_ratio(name, method, asked.pairs), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
