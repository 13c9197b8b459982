"""Weights on chosen keys, in every backend on the CPU, against the row-by-row twin: values and gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lmmkit.attention.eager import Eager
from lmmkit.attention.interface import Heads
from lmmkit.attention.key_maps import KeyBlock, KeyMap, padded_keys
from lmmkit.attention.merge import hand_over
from lmmkit.attention.sdpa import Sdpa
from tests.support import plain_twins
from tests.support.attention_cases import CASES, CPU, HEADS, SIZE, TIGHT, Case, inputs
from tests.support.plain_twins import off, show


def maps_of(case: Case, seed: int = 0) -> tuple[KeyMap, ...]:
    """Returns maps with a block for each query: some of the keys that it attends to, and one of other rows; and
    of runs of queries on the keys of the last."""
    draw, see = np.random.default_rng(seed), case.forest.see().numpy()
    rows = np.flatnonzero(draw.random(len(see)) < 0.5)
    blocks = []
    for i, row in enumerate(rows):
        seen = draw.permutation(np.flatnonzero(see[row]))[: draw.integers(1, 9)]
        others = np.flatnonzero(~see[row])[:1]
        blocks.append(KeyBlock(i, i + 1, np.concatenate([seen, others]), np.array([len(seen)])))
    alone = KeyMap("alone", rows, tuple(blocks))
    long = KeyMap("long", *_runs(see))
    return alone, replace(alone, name="heads", heads=(2, 0)), long, replace(long, name="sum", summed=True)


def _runs(see: np.ndarray) -> tuple[np.ndarray, tuple[KeyBlock, ...]]:
    """Returns queries along two paths, which may share rows, and their blocks."""
    rows, blocks = [], []
    for leaf in (len(see) - 1, len(see) // 2):
        path = np.flatnonzero(see[leaf])
        path = path[np.argsort(see[path].sum(1), kind="stable")]
        seen = np.array([int(see[q][path].sum()) for q in path])
        blocks.append(KeyBlock(len(rows), len(rows) + len(path), path, seen))
        rows += path.tolist()
    return np.array(rows), tuple(blocks)


def found(backend, case: Case, maps, given, read_T=None):
    """Returns the outputs, mass and maps of a backend, and their gradients."""
    q, k, v, d_out, d_mass = given
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    attention_fn = backend.prepare(replace(case.attention(read_T), maps=maps), CPU)
    turn = q.new_ones(len(q), 1, SIZE // 2)
    qkv_TC = torch.cat(leaves, 1).flatten(1)
    out_WC, mass_R, *values = attention_fn(qkv_TC, Heads(HEADS, k.shape[1], SIZE), (turn, 0 * turn))
    d_out = d_out.index_fill(0, case.dead_R, 0)[attention_fn.rows].flatten(1)
    ways = [torch.cos(torch.arange(x.numel())).view(x.shape).to(x) for x in values]
    return values, torch.autograd.grad(
        [out_WC, mass_R, *values], leaves, [d_out, d_mass[case.row_R].to(mass_R), *ways]
    )


def of_twin(case: Case, maps, given):
    q, k, v, d_out, d_mass = given
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out_THK, map_THT = plain_twins.attention(*leaves, case.forest.see())
    mass_R = plain_twins.mass(map_THT, case.key_T, case.row_R)
    values = []
    for each in maps:
        rows = []
        for block in each.blocks:
            for q_row, seen in zip(each.row_Q[block.start : block.stop], block.attended_I, strict=True):
                line = map_THT[q_row][list(each.heads or range(HEADS))].mean(0)[block.key_J[:seen]]
                line = line.sum(0, keepdim=True) if each.summed else line
                rows.append(torch.nn.functional.pad(line, (0, each.width - len(line))))
        values.append(torch.stack(rows) if rows else q.new_zeros(0, each.width))
    ways = [torch.cos(torch.arange(x.numel())).view(x.shape).to(x) for x in values]
    d_out = d_out.index_fill(0, case.dead_R, 0)
    outs = [out_THK, mass_R + 0 * leaves[0].sum(), *(x + 0 * leaves[0].sum() for x in values)]
    return values, torch.autograd.grad(outs, leaves, [d_out, d_mass[case.row_R], *ways])


@pytest.mark.parametrize("backend", [Sdpa(), Eager()], ids=lambda b: b.name)
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("name", CASES)
def test_weights_and_gradients_are_those_of_the_whole_map(backend, groups, name):
    case = CASES[name]()
    maps, given = maps_of(case), inputs(len(case.forest), groups)
    want = of_twin(case, maps, given)
    for dtype, limit in TIGHT.items():
        got = found(backend, case, maps, [x.to(dtype) for x in given])
        errors = [off(a, b) for a, b in zip((*got[0], *got[1]), (*want[0], *want[1]), strict=True)]
        show(f"{dtype}", max(errors))
        assert max(errors) < limit, errors


@pytest.mark.parametrize("backend", [Sdpa(), Eager()], ids=lambda b: b.name)
@pytest.mark.parametrize("name", ["one document", "packing", "no response"])
def test_where_only_some_rows_come_out(backend, name):
    case = CASES[name]()
    maps, (q, k, v, d_out, d_mass) = maps_of(case)[:2], inputs(len(case.forest), 2)
    read_T = torch.zeros(len(case.forest), dtype=torch.bool)
    read_T[np.concatenate([each.row_Q for each in maps])] = True
    given = q, k, v, d_out * read_T[:, None, None], d_mass
    want, got = of_twin(case, maps, given), found(backend, case, maps, given, read_T)
    assert not read_T.all()
    for a, b in zip((*got[0], *got[1]), (*want[0], *want[1]), strict=True):
        assert off(a, b) < 1e-12


def test_keys_are_padded_and_those_that_are_not_seen_are_left_out():
    blocks = [
        KeyBlock(0, 2, np.array([5, 6, 9]), np.array([1, 3])),
        KeyBlock(2, 3, np.array([7]), np.array([1])),
    ]
    assert padded_keys(blocks).tolist() == [[5, -1, -1], [5, 6, 9], [7, -1, -1]]
    assert padded_keys([]).shape == (0, 0)


def test_a_function_of_a_layer_reads_its_maps_only():
    case = CASES["one document"]()
    alone, heads, *_ = maps_of(case)
    maps = (alone, replace(heads, layers=(1,)))
    fn = Sdpa().prepare(replace(case.attention(), maps=maps), CPU)
    names = [[each.name for each in fn.of_layer(n).maps] for n in range(3)]
    assert names == [["alone"], ["alone", "heads"], ["alone"]] and fn.of_layer(1) is fn
    plain = Sdpa().prepare(case.attention(), CPU)
    assert plain.of_layer(0) is plain and plain.maps == ()


def test_readers_of_one_row_add_up():
    d, out = (torch.randn(5, 2, 4, dtype=torch.float64) for _ in range(2))
    rows, terms = torch.tensor([1, 3]), [torch.randn(2, 2, dtype=torch.float64) for _ in range(3)]
    changed, (handed,) = hand_over(d, out, rows, [[(rows, term) for term in terms]])
    want = (d * out).sum(-1).index_add(0, rows, sum(terms[1:], terms[0]))
    assert off((changed * handed).sum(-1), want) < 1e-12
