"""The forest against its one-line rule, on random trees."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmkit.forest import Forest, grow, roots
from tests import reference
from tests.forests import concat, permuted, random_forest, random_groups

SEEDS = st.integers(0, 2**32 - 1)
often = settings(derandomize=True, deadline=None, max_examples=60)


def covered(forest: Forest, cut: torch.Tensor | None) -> np.ndarray:
    """How often each (query, key) pair stands in a call."""
    times = np.zeros((len(forest), len(forest)), int)
    for call in forest.calls(cut)[0]:
        for q, k in zip(call.q, call.k, strict=True):
            whole = np.ones((len(q), len(k)), int)
            times[np.ix_(q, k)] += np.tril(whole) if call.causal else whole
    return times


def cut_at_random(forest: Forest, seed: int) -> torch.Tensor:
    return torch.rand(len(forest), generator=torch.Generator().manual_seed(seed)) < 0.25


@often
@given(SEEDS)
def test_intervals_of_random_and_grown_forests_nest(seed):
    forests = [random_forest(seed), grow(random_groups(seed), worth=1 + seed % 9)[0]]
    for forest in forests:
        enter, leave = forest.enter_T, forest.leave_T
        assert (enter < leave).all()
        for first, last in zip(enter.tolist(), leave.tolist(), strict=True):
            inside = (enter > first) & (enter < last)
            assert (leave[inside] <= last).all()


@often
@given(SEEDS)
def test_every_row_stands_in_one_run_of_one_leave(seed):
    forest = random_forest(seed)
    see = forest.see().numpy()
    for cut in (None, cut_at_random(forest, seed)):
        runs = forest.runs(cut)
        rows = np.concatenate([run.rows for run in runs])
        assert sorted(rows.tolist()) == list(range(len(forest)))
        for run in runs:
            assert len(forest.leave_T[torch.from_numpy(run.rows)].unique()) == 1
            sees_all = np.setdiff1d(np.flatnonzero(see[:, run.rows].all(1)), run.rows)
            assert sorted(run.below.tolist()) == sees_all.tolist()
            if run.parent >= 0:
                assert runs[run.parent].depth == run.depth - 1
                assert np.isin(run.rows, runs[run.parent].below).all()


@often
@given(SEEDS)
def test_calls_cover_each_seen_pair_once_whatever_the_cut(seed):
    forest = random_forest(seed)
    see = forest.see().numpy().astype(int)
    everywhere = torch.ones(len(forest), dtype=torch.bool)
    for cut in (None, cut_at_random(forest, seed), everywhere):
        assert (covered(forest, cut) == see).all()


@often
@given(SEEDS)
def test_a_row_queries_once_a_call_and_has_one_own_segment(seed):
    forest = random_forest(seed)
    calls, runs = forest.calls(cut_at_random(forest, seed))
    own = np.concatenate([q for call in calls if call.own for q in call.q])
    assert sorted(own.tolist()) == list(range(len(forest)))
    assert all(not later.own or call.own for call, later in pairwise(calls))
    for call in calls:
        rows = np.concatenate(call.q)
        assert len(np.unique(rows)) == len(rows)
        assert all((runs[i].rows == k).all() for i, k in zip(call.run, call.k, strict=True))


@often
@given(SEEDS)
def test_permuting_memory_permutes_what_is_seen_and_nothing_else(seed):
    forest = random_forest(seed, permute=False)
    order = torch.randperm(len(forest), generator=torch.Generator().manual_seed(seed))
    assert (permuted(forest, order).see() == forest.see()[order][:, order]).all()


def test_a_block_of_equal_enter_sees_itself_both_ways():
    enter, leave = torch.tensor([0, 1, 1, 1, 4]), torch.tensor([5, 5, 5, 5, 5])
    see = Forest(enter.int(), leave.int(), torch.arange(5).int()).see()
    assert see[1:4, 1:4].all() and see[4].all() and see[0].tolist() == [True] + 4 * [False]


def test_a_block_whose_rows_end_at_different_places_is_covered():
    enter, leave = torch.tensor([0, 1, 1, 1, 4, 5]), torch.tensor([6, 6, 5, 6, 6, 6])
    forest = Forest(enter.int(), leave.int(), torch.arange(6).int())
    assert (covered(forest, None) == forest.see().numpy()).all()


def test_no_rows_have_no_runs_and_no_calls():
    assert roots([]).runs() == [] and roots([]).calls() == ((), []) and len(concat([])) == 0
    assert grow([])[1] == [] and len(grow([[]])[0]) == 0


@pytest.mark.parametrize(("share", "worth"), [(True, 1), (True, 8), (False, 1)])
@often
@given(seed=SEEDS)
def test_grown_paths_are_the_sequences(share, worth, seed):
    groups = random_groups(seed)
    forest, paths = grow(groups, share=share, worth=worth)
    _, apart = reference.grow(groups)
    see = forest.see()
    key = np.full(len(forest), -1)
    group_of = np.full(len(forest), -1)
    sequences = [(g, keys) for g, sequences in enumerate(groups) for keys in sequences]
    assert [len(path) for path in paths] == [len(path) for path in apart]
    for (g, keys), path in zip(sequences, paths, strict=True):
        assert np.isin(key[path], [-1]).all() or (key[path][key[path] >= 0] == keys[key[path] >= 0]).all()
        assert (group_of[path] == -1).sum() + (group_of[path] == g).sum() == len(path)
        key[path], group_of[path] = keys, g
        own = see[torch.from_numpy(path)]
        assert (own[:, path] == reference.causal(len(path))).all()
        assert (own.sum(1) == torch.arange(1, len(path) + 1)).all()  # and nothing off the path
        assert forest.pos_T[path].tolist() == list(range(len(path)))
    assert (key >= 0).all()
    assert (forest.pos_T == see.sum(1) - 1).all()


@often
@given(SEEDS)
def test_sharing_takes_one_row_a_distinct_prefix(seed):
    groups = random_groups(seed)
    assert len(grow(groups)[0]) == reference.trie_rows(groups)
    assert len(grow(groups, share=False)[0]) == sum(len(keys) for group in groups for keys in group)


@often
@given(SEEDS, st.integers(2, 10))
def test_no_stretch_shorter_than_its_worth_is_shared(seed, worth):
    groups = random_groups(seed)
    forest, paths = grow(groups, worth=worth)
    users = [frozenset(i for i, path in enumerate(paths) if row in path) for row in range(len(forest))]
    stretches: dict[frozenset, int] = {}
    for user in users:
        stretches[user] = stretches.get(user, 0) + 1
    assert all(n >= worth for user, n in stretches.items() if len(user) > 1)


def test_a_prefix_just_worth_it_is_shared_and_one_row_less_is_not():
    long, short = np.arange(8), np.arange(7)
    for trunk, rows in ((long, 10), (short, 16)):
        views = [np.append(trunk, 100), np.append(trunk, 200)]
        assert len(grow([views], worth=8)[0]) == rows


def test_groups_never_share():
    same = np.arange(20)
    forest, paths = grow([[same], [same]])
    assert len(forest) == 40 and not forest.see()[paths[0]][:, paths[1]].any()


@often
@given(SEEDS)
def test_side_by_side_nobody_sees_across(seed):
    first = random_forest(seed)
    parts = [first, random_forest(seed + 1), roots([3, 0, 2])]
    both = concat(parts)
    assert (both.see() == torch.block_diag(*(f.see() for f in parts)).bool()).all()
    assert both.pos_T.tolist() == [p for f in parts for p in f.pos_T.tolist()]


def test_a_path_taken_out_of_a_forest_can_stand_beside_another():
    whole = roots([2, 3])
    second = permuted(whole, torch.tensor([2, 3, 4]))  # labels begin at 2
    see = concat([second, roots([2])]).see()
    assert (see == torch.block_diag(torch.ones(3, 3).tril(), torch.ones(2, 2).tril()).bool()).all()
