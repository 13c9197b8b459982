"""The forest against its one-line rule, on random trees."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmkit.attention.forest import Forest, arrange, blocks, grow, roots, runs, unshared
from tests.support import plain_twins
from tests.support.random_forests import concat, permuted, random_forest, random_groups

SEEDS = st.integers(0, 2**32 - 1)
often = settings(derandomize=True, deadline=None, max_examples=60)


def cut_at_random(forest: Forest, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(len(forest)) < 0.25


@often
@given(SEEDS)
def test_intervals_of_random_and_grown_forests_nest(seed):
    forests = [random_forest(seed), grow(random_groups(seed), min_shared=1 + seed % 9)[0]]
    for forest in forests:
        enter, leave = forest.enter_T, forest.leave_T
        assert (enter < leave).all()
        for first, last in zip(enter.tolist(), leave.tolist(), strict=True):
            inside = (enter > first) & (enter < last)
            assert (leave[inside] <= last).all()


@often
@given(SEEDS)
def test_runs_tile_memory_and_their_rule_is_that_of_their_rows(seed):
    forest = random_forest(seed)
    see = forest.see().numpy()
    for cut in (None, cut_at_random(forest, seed)):
        found = runs(forest, cut)
        order = np.argsort(found.start)
        bounds = np.append(found.start[order], len(forest))
        assert bounds[0] == 0 and (found.stop[order] == bounds[1:]).all()
        for i, (a, b) in enumerate(zip(found.start, found.stop, strict=True)):
            assert len(forest.leave_T[a:b].unique()) == 1
            own = see[a:b, a:b]
            assert (own == (np.ones_like(own) if found.full[i] else np.tril(np.ones_like(own)))).all()
            for j, (c, d) in enumerate(zip(found.start, found.stop, strict=True)):
                if i != j:
                    assert (see[a:b, c:d] == found.see[i, j]).all()


@often
@given(SEEDS)
def test_arranging_is_a_permutation_that_keeps_the_rule(seed):
    forest, paths = grow(random_groups(seed), min_shared=1 + seed % 9)
    moved, new = arrange(forest, cut_at_random(forest, seed))
    assert sorted(new.tolist()) == list(range(len(forest)))
    assert (moved.see()[new][:, new] == forest.see()).all()
    assert (moved.pos_T[new] == forest.pos_T).all()
    for path in paths:
        assert moved.pos_T[new[path]].tolist() == list(range(len(path)))


def test_runs_of_one_length_come_to_stand_side_by_side():
    def view(head: int, tail: int) -> np.ndarray:
        return np.append(np.arange(20) + 100 * head, np.arange(tail) + 10_000 * head)

    views = [view(1, 3), view(2, 9), view(3, 5)]
    forest, paths = unshared([len(each) for each in views])
    cut_T = np.zeros(len(forest), bool)
    for path in paths:
        cut_T[path[20]] = True
    assert runs(forest, cut_T).start.tolist() != [0, 60, 20, 69, 40, 72]
    moved = arrange(forest, cut_T)[0]
    found = runs(moved)
    assert sorted(zip(found.start.tolist(), (found.stop - found.start).tolist(), strict=True)) == [
        (0, 20), (20, 20), (40, 20), (60, 3), (63, 9), (72, 5)
    ]  # fmt: skip


@often
@given(SEEDS)
def test_permuting_memory_permutes_what_is_seen_and_nothing_else(seed):
    forest = random_forest(seed, permute=False)
    order = torch.randperm(len(forest), generator=torch.Generator().manual_seed(seed))
    assert (permuted(forest, order).see() == forest.see()[order][:, order]).all()


def test_a_block_of_equal_enter_is_visible_to_itself_both_ways():
    enter, leave = torch.tensor([0, 1, 1, 1, 4]), torch.tensor([5, 5, 5, 5, 5])
    see = Forest(enter.int(), leave.int(), torch.arange(5).int()).see()
    assert see[1:4, 1:4].all() and see[4].all() and see[0].tolist() == [True] + 4 * [False]


def test_no_rows_have_no_runs():
    found, new = roots([]).runs, arrange(roots([]), np.zeros(0, bool))[1]
    assert len(found.start) == len(new) == len(concat([])) == 0
    assert grow([])[1] == unshared([])[1] == [] and len(grow([[]])[0]) == len(unshared([])[0]) == 0


@pytest.mark.parametrize(("share", "min_shared"), [(True, 1), (True, 8), (False, 1)])
@often
@given(seed=SEEDS)
def test_grown_paths_are_the_sequences(share, min_shared, seed):
    groups = random_groups(seed)
    lengths = [len(keys) for group in groups for keys in group]
    forest, paths = grow(groups, min_shared=min_shared) if share else unshared(lengths)
    _, apart = plain_twins.grow(groups)
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
        assert (own[:, path] == plain_twins.causal(len(path))).all()
        assert (own.sum(1) == torch.arange(1, len(path) + 1)).all()  # and nothing off the path
        assert forest.pos_T[path].tolist() == list(range(len(path)))
    assert (key >= 0).all()
    assert (forest.pos_T == see.sum(1) - 1).all()


@often
@given(SEEDS)
def test_sharing_takes_one_row_a_distinct_prefix(seed):
    groups = random_groups(seed)
    assert len(grow(groups)[0]) == plain_twins.trie_rows(groups)
    lengths = [len(keys) for group in groups for keys in group]
    assert len(unshared(lengths)[0]) == sum(lengths)


@often
@given(SEEDS, st.integers(2, 10))
def test_no_stretch_shorter_than_its_worth_is_shared(seed, min_shared):
    groups = random_groups(seed)
    forest, paths = grow(groups, min_shared=min_shared)
    users = [frozenset(i for i, path in enumerate(paths) if row in path) for row in range(len(forest))]
    stretches: dict[frozenset, int] = {}
    for user in users:
        stretches[user] = stretches.get(user, 0) + 1
    assert all(n >= min_shared for user, n in stretches.items() if len(user) > 1)


def test_a_prefix_just_worth_it_is_shared_and_one_row_less_is_not():
    long, short = np.arange(8), np.arange(7)
    for trunk, rows in ((long, 10), (short, 16)):
        views = [np.append(trunk, 100), np.append(trunk, 200)]
        assert len(grow([views], min_shared=8)[0]) == rows


def test_groups_never_share():
    same = np.arange(20)
    forest, paths = grow([[same], [same]])
    assert len(forest) == 40 and not forest.see()[paths[0]][:, paths[1]].any()


@often
@given(SEEDS)
def test_forests_side_by_side_are_invisible_to_each_other(seed):
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


@pytest.mark.parametrize("lengths", [[3, 5, 4], [1, 2], [7], [2, 2, 2], []])
def test_blocks_see_themselves_and_each_is_one_run(lengths):
    forest = blocks(lengths)
    want = (
        torch.block_diag(*(torch.ones(n, n) for n in lengths)).bool() if lengths else torch.ones(0, 0).bool()
    )
    assert torch.equal(forest.see(), want)
    assert len(forest.runs.start) == len(lengths), "each needs one call of a kernel"
    assert forest.runs.full.tolist() == [n > 1 for n in lengths]
