"""Steps of rows that are alike: LLaVA's grouping, as a pure function of the position."""

import pickle
import random

import numpy as np
import pytest

from lmmkit.data.length_grouping import WINDOW, GroupedSampler
from lmmkit.data.sampler import Sampler

SAMPLES = 4


def made(total=1000, *, sizes=None, weights=None, by_length=False, seed=7):
    sizes = sizes or {"a": 1000}
    rng = np.random.default_rng(0)
    words = {n: rng.integers(1, 200, size) * rng.choice([-1, 1, 1], size) for n, size in sizes.items()}
    order = Sampler(sizes, weights or dict.fromkeys(sizes, 1.0), seed)
    return GroupedSampler(order, words, samples=SAMPLES, total=total, by_length=by_length)


def steps(grouped):
    rows = [grouped.at(k) for k in range(grouped.total)]
    return [rows[i : i + SAMPLES] for i in range(0, len(rows), SAMPLES)]


def lengths(grouped, step):
    return [int(grouped.words[source][row]) for source, _, row in step]


def llava(rows, words, batches_in_order):
    """LLaVA's `get_modality_length_grouped_indices` on a shuffled list, its batches put in an order."""
    with_image = [row for row in rows if words[row] > 0]
    text = [row for row in rows if words[row] < 0]
    whole, rest = [], []
    for pool in (with_image, text):
        batches = [pool[i : i + SAMPLES] for i in range(0, len(pool), SAMPLES)]
        batches = [sorted(batch, key=lambda row: abs(words[row]), reverse=True) for batch in batches]
        if batches and len(batches[-1]) < SAMPLES:
            rest += batches.pop()
        whole += batches
    return [whole[j] for j in batches_in_order], rest


@pytest.mark.parametrize("by_length", [False, True])
def test_an_epoch_has_every_row_once_and_steps_of_one_kind(by_length):
    grouped = made(by_length=by_length)
    assert sorted(row for step in steps(grouped) for _, _, row in step) == list(range(1000))
    mixed = 0
    for step in steps(grouped):
        found = lengths(grouped, step)
        assert [abs(n) for n in found] == sorted(map(abs, found), reverse=True)
        mixed += len({n > 0 for n in found}) > 1
    assert mixed <= -(-1000 // (WINDOW * SAMPLES))
    plain = GroupedSampler(made().order, grouped.words, samples=SAMPLES, total=1000, by_length=False)
    spread = [np.mean([np.ptp(np.abs(lengths(g, s))) for s in steps(g)]) for g in (grouped, plain)]
    assert not by_length or spread[0] < spread[1] / 5


def test_a_window_is_llavas_grouping_of_its_rows():
    grouped = made()
    words = grouped.words["a"]
    rows = [grouped.order.at(k)[2] for k in range(WINDOW * SAMPLES)]
    got = [[row for _, _, row in step] for step in steps(grouped)[:WINDOW]]
    whole, rest = llava(
        rows, words, range(len(rows)) and range(sum(len(set(words[s] > 0)) == 1 for s in got))
    )
    assert sorted(map(tuple, got[: len(whole)])) == sorted(map(tuple, whole))
    assert sorted(row for step in got[len(whole) :] for row in step) == sorted(rest)
    assert [tuple(s) for s in got[: len(whole)]] != [tuple(s) for s in whole], "batches are shuffled too"


def test_a_position_is_the_same_in_any_order_of_asking():
    grouped = made(700, sizes={"a": 300, "b": 90}, weights={"a": 2.0, "b": 1.0})
    want = [grouped.at(k) for k in range(700)]
    sent = pickle.loads(pickle.dumps(grouped))
    ks = list(range(700))
    random.Random(0).shuffle(ks)
    assert all(sent.at(k) == want[k] for k in ks[:100])
    assert sorted(want) == sorted(grouped.order.at(k) for k in range(700))
    assert [made(700, seed=8).at(k) for k in range(50)] != [made(700).at(k) for k in range(50)]


def test_the_last_window_is_no_longer_than_the_stage():
    grouped = made(WINDOW * SAMPLES + 6)
    tail = [grouped.at(k)[2] for k in range(WINDOW * SAMPLES, grouped.total)]
    assert sorted(tail) == sorted(grouped.order.at(k)[2] for k in range(WINDOW * SAMPLES, grouped.total))
    assert len(steps(grouped)[-1]) == 2


def test_text_alone_and_images_alone():
    for sign in (1, -1):
        grouped = made(300)
        words = {"a": sign * np.abs(grouped.words["a"])}
        alone = GroupedSampler(grouped.order, words, samples=SAMPLES, total=300, by_length=False)
        assert sorted(alone.at(k) for k in range(300)) == sorted(grouped.order.at(k) for k in range(300))
