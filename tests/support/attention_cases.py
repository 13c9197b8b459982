"""Forests with key rows and readers of every kind, and the row-by-row twin's answer to them."""

from typing import NamedTuple

import torch
from torch import Tensor

from lmmkit.attention.forest import Forest, grow, make, roots
from lmmkit.attention.interface import AttentionFn, Heads
from lmmkit.attention.schedule import AttentionSpec
from tests.support import plain_twins
from tests.support.plain_twins import off, show
from tests.support.random_forests import random_forest

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
TIGHT = {torch.float64: 1e-12, torch.float32: 5e-6}
HEADS, SIZE = 4, 8


class Case(NamedTuple):
    """A forest, the key rows of the mass, the rows that read it, and the rows without an output gradient."""

    forest: Forest
    key_T: Tensor
    row_R: Tensor
    dead_R: Tensor

    def attention(self, read_T: Tensor | None = None) -> AttentionSpec:
        return AttentionSpec(self.forest, self.key_T, self.row_R, read_T)


def marks(total: int, *rows) -> Tensor:
    key_T = torch.zeros(total, dtype=torch.bool)
    for part in rows:
        key_T[torch.as_tensor(part)] = True
    return key_T


def case(forest: Forest, keys, reads, dead=()) -> Case:
    reads, dead = (torch.as_tensor(sorted({int(i) for i in r}), dtype=torch.int64) for r in (reads, dead))
    return Case(forest, marks(len(forest), *keys), reads, dead)


def branches(trunk: int, *tails: int) -> tuple[Forest, list]:
    keys = [[*range(trunk), *range(1000 * (i + 1), 1000 * (i + 1) + n)] for i, n in enumerate(tails)]
    return grow([[torch.tensor(k).numpy() for k in keys]])


def shared(trunk: int, image: slice, *tails: int) -> Case:
    """Branches behind an image of the trunk; every tail reads, and the last image row, which is shared."""
    forest, paths = branches(trunk, *tails)
    rows = list(range(len(forest)))
    tail_rows = [r for path in paths for r in path[trunk:]]
    return case(forest, [rows[image]], [rows[image][-1], *tail_rows], dead=[path[-1] for path in paths])


def packed() -> Case:
    """Three documents: text before the image; the image in the middle; no image."""
    forest = roots([17, 23, 9])
    return case(
        forest, [range(6, 12), range(17 + 5, 17 + 14)], [*range(12, 17), *range(32, 40), *range(41, 49)]
    )


def random_case(seed: int) -> Case:
    forest = random_forest(seed, most=40)
    pick = torch.Generator().manual_seed(seed)
    share = torch.rand(3, len(forest), generator=pick)
    return case(
        forest, [(share[0] < 0.3).nonzero()[:, 0]], (share[1] < 0.5).nonzero(), (share[2] < 0.3).nonzero()
    )


CASES = {
    "one document": lambda: case(roots([30]), [range(4, 14)], range(14, 30)),
    "packing": packed,
    "shared prefix": lambda: shared(12, slice(1, 12), 9, 9),
    "ragged branches": lambda: shared(12, slice(3, 12), 1, 20, 6),
    "text after the image in the trunk": lambda: shared(15, slice(2, 9), 5, 11),
    "many short branches": lambda: shared(6, slice(1, 6), *range(1, 9)),
    "multiples of 32 rows": lambda: case(roots([64, 32]), [range(3, 9), range(66, 80)], range(20, 96)),
    "no image": lambda: case(roots([11, 5]), [], range(3, 16)),
    "no response": lambda: case(roots([11, 5]), [range(1, 6)], []),
    "image first and alone": lambda: case(roots([6]), [range(6)], range(6), dead=[5]),
    "no output gradient at all": lambda: case(roots([20]), [range(3, 9)], range(9, 20), dead=range(20)),
    "bidirectional block": lambda: case(
        make([0, 1, 1, 1, 1, 5, 6], [7] * 7, range(7)), [range(2, 4)], [1, 3, 5, 6], dead=[6]
    ),
    **{f"random {i}": lambda i=i: random_case(i) for i in range(8)},
}


class Found(NamedTuple):
    out: Tensor
    mass: Tensor
    d_q: Tensor
    d_k: Tensor
    d_v: Tensor


def inputs(T: int, groups: int, seed: int = 0) -> list[Tensor]:
    """q, k, v, the gradients of output and mass of all rows, in float64."""
    draw = torch.Generator().manual_seed(seed)
    sizes = [(T, HEADS, SIZE), (T, groups, SIZE), (T, groups, SIZE), (T, HEADS, SIZE), (T,)]
    return [torch.randn(*size, generator=draw, dtype=torch.float64) for size in sizes]


def found(call, case: Case, given, dtype, device=CPU) -> Found:
    """Outputs, mass and gradients of `call(q, k, v)` in one backward pass."""
    q, k, v, d_out, d_mass = (x.to(device, dtype) for x in given)
    d_out = d_out.index_fill(0, case.dead_R.to(device), 0)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    out, mass = call(q, k, v)
    gradients = torch.autograd.grad([out, mass], [q, k, v], [d_out, d_mass[case.row_R.to(device)].to(mass)])
    return Found(out, mass, *gradients)


def unturned(attention_fn: AttentionFn):
    """(q, k, v) -> (out [W, H, K], mass [R]), where nothing is turned."""

    def call(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> tuple[Tensor, Tensor]:
        (T, H, K), G = q_THK.shape, k_TGK.shape[1]
        cos_T1K = q_THK.new_ones(T, 1, K // 2)
        out_WC, mass_R = attention_fn(
            torch.cat([q_THK, k_TGK, v_TGK], 1).flatten(1), Heads(H, G, K), (cos_T1K, 0 * cos_T1K)
        )
        return out_WC.unflatten(1, (H, K)), mass_R

    return call


def of_backend(backend, case: Case, given, dtype, device=CPU) -> Found:
    attention_fn = backend.prepare(case.attention(), device)
    return found(unturned(attention_fn), case, given, dtype, device)


def of_twin(case: Case, given) -> Found:
    see = case.forest.see()

    def call(q, k, v):
        out, map_THT = plain_twins.attention(q, k, v, see)
        return out, plain_twins.mass(map_THT, case.key_T, case.row_R) + 0 * q.sum()

    return found(call, case, given, torch.float64)


def assert_close(got: Found, want: Found, limit: float) -> None:
    errors = {name: off(a, b) for name, a, b in zip(Found._fields, got, want, strict=True)}
    show(f"{got.out.dtype} out", errors["out"])
    show(f"{got.out.dtype} mass", errors["mass"])
    show(f"{got.out.dtype} gradients", max(errors["d_q"], errors["d_k"], errors["d_v"]))
    assert max(errors.values()) < limit, errors
