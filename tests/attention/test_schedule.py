"""The flash plan against the rule: every seen pair once, mass only where it is asked for."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmkit.attention.forest import expand, make, roots
from lmmkit.attention.schedule import AttentionSpec
from tests.support.random_forests import random_forest

often = settings(derandomize=True, deadline=None, max_examples=150)
NONE = torch.empty(0, dtype=torch.int64)


@st.composite
def sights(draw) -> AttentionSpec:
    """Draws a forest, key rows, rows that ask and rows that are read: any of them none or all."""
    seed = draw(st.integers(0, 2**32 - 1))
    forest = random_forest(seed, permute=draw(st.booleans()))
    share = [draw(st.sampled_from([0.0, 0.1, 0.4, 1.0])) for _ in range(3)]
    mark = torch.rand(3, len(forest), generator=torch.Generator().manual_seed(seed))
    key_T, asks_T, read_T = (row < part for row, part in zip(mark, share, strict=True))
    return AttentionSpec(forest, key_T, asks_T.nonzero()[:, 0], draw(st.sampled_from([None, read_T])))


def pairs(call) -> list[tuple[np.ndarray, np.ndarray]]:
    """(queries, keys) of every segment of a call."""
    keys = zip(call.k, call.m, strict=True)
    queries = [expand(call.q[call.of == i], call.n[call.of == i]) for i in range(len(call.k))]
    return [(q, np.arange(k, k + m)) for q, (k, m) in zip(queries, keys, strict=True)]


def covered(spec: AttentionSpec, *, key: bool | None = None) -> np.ndarray:
    """[T, T]: how often each (query, key) pair is in a call."""
    times = np.zeros((len(spec.forest), len(spec.forest)), int)
    for call in spec.calls:
        for q, k in pairs(call) if key in (None, call.key) else ():
            whole = np.ones((len(q), len(k)), int)
            times[np.ix_(q, k)] += np.tril(whole) if call.causal else whole
    return times


def out(spec: AttentionSpec) -> np.ndarray:
    return np.arange(len(spec.forest)) if spec.row_W is None else spec.row_W


@often
@given(sights())
def test_calls_cover_each_seen_pair_of_the_rows_that_come_out_once(spec):
    see = spec.forest.see().numpy().astype(int)
    see[np.setdiff1d(np.arange(len(see)), out(spec))] = 0
    assert (covered(spec) == see).all()


@often
@given(sights())
def test_the_rows_that_are_read_and_those_that_ask_come_out(spec):
    rows = set(out(spec).tolist())
    assert rows >= set(spec.row_R.tolist())
    if spec.read_T is not None:
        assert rows >= set(spec.read_T.nonzero()[:, 0].tolist())


@often
@given(sights())
def test_whoever_asks_has_the_key_rows_in_calls_of_their_own(spec):
    marked = covered(spec, key=True)[spec.row_R]
    want = spec.forest.see()[spec.row_R] & spec.key_T
    assert (marked == want.numpy()).all()


@often
@given(sights())
def test_a_row_queries_once_a_level_is_a_key_once_a_call_and_has_one_own_segment(spec):
    assert all(a.level <= b.level for a, b in pairwise(spec.calls))
    queries: dict[int, list] = {}
    for call in spec.calls:
        keys = np.concatenate([k for _, k in pairs(call)])
        assert len(np.unique(keys)) == len(keys)
        queries.setdefault(call.level, []).extend(q for q, _ in pairs(call))
        assert not call.causal or all((q == k).all() for q, k in pairs(call))
    for level, rows in queries.items():
        rows = np.concatenate(rows)
        assert len(np.unique(rows)) == len(rows)
        assert level or sorted(rows.tolist()) == out(spec).tolist()


@often
@given(sights(), st.integers(0, 2**32 - 1))
def test_parts_of_a_call_are_its_segments_in_the_order_asked_for(spec, seed):
    for call in spec.calls:
        chosen = np.random.default_rng(seed).permutation(len(call.k))[: 1 + seed % len(call.k)]
        want = [pairs(call)[i] for i in chosen]
        for (q, k), (want_q, want_k) in zip(pairs(call.part(chosen)), want, strict=True):
            assert (q == want_q).all() and (k == want_k).all()
        assert call.part(chosen).lengths.tolist() == [len(q) for q, _ in want]


def test_without_an_asker_nothing_is_cut():
    forest, key_T = roots([30]), torch.arange(30) < 9
    assert len(AttentionSpec(forest, key_T, NONE).calls) == 1
    assert len(AttentionSpec(forest, key_T, torch.tensor([20])).calls) == 3  # twice itself, and onto the keys


def test_a_block_whose_rows_end_at_different_places_is_covered():
    enter, leave = np.array([0, 1, 1, 1, 4, 5]), np.array([6, 6, 5, 6, 6, 6])
    forest = make(enter, leave, np.arange(6))
    assert (
        covered(AttentionSpec(forest, torch.zeros(6, dtype=torch.bool), NONE)) == forest.see().numpy()
    ).all()


def test_no_rows_make_no_calls():
    nothing = torch.zeros(0, dtype=torch.bool)
    assert AttentionSpec(roots([]), nothing, NONE).calls == ()
    assert AttentionSpec(roots([]), nothing, NONE, nothing).row_W.tolist() == []
