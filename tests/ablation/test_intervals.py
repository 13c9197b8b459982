"""Intervals over seeds and over questions, beside slow plain twins."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from lmmkit.ablation.intervals import Estimate, over_questions, over_seeds, with_holm

T_4 = 2.776445  # the 97.5 % point of Student's t with 4 degrees of freedom, from a printed table


def test_the_interval_over_seeds_is_that_of_student():
    values = [1.4, 1.5, 5.7, 3.8, -0.2]
    found = over_seeds(values)
    mean = sum(values) / 5
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / 4 / 5)
    assert found.value == pytest.approx(mean) and found.n == 5
    assert found.low == pytest.approx(mean - T_4 * error, rel=1e-5)
    assert found.high == pytest.approx(mean + T_4 * error, rel=1e-5)
    edge = over_seeds([v - mean + T_4 * error for v in values])
    assert edge.p == pytest.approx(0.05, rel=1e-4), "an interval that ends at 0"


def test_one_value_has_no_interval_and_equal_ones_no_p():
    assert over_seeds([0.3]) == Estimate(value=0.3, n=1)
    found = over_seeds([0.25, 0.25, 0.25])
    assert (found.low, found.high, found.p) == (0.25, 0.25, None)


def test_p_over_seeds_is_right_under_no_effect():
    draw = random.Random(0)
    ps = [over_seeds([draw.gauss(0, 1) for _ in range(4)]).p for _ in range(2000)]
    assert sum(p is not None and p < 0.05 for p in ps) / 2000 == pytest.approx(0.05, abs=0.015)


def test_over_questions_pairs_by_id_and_draws_clusters():
    draw = random.Random(1)
    ids = [f"q{i}" for i in range(60)]
    clusters = {id: f"image {i // 3}" for i, id in enumerate(ids)}
    shift = {cluster: draw.choice((0.0, 1.0)) for cluster in set(clusters.values())}
    base = {id: [float(draw.random() < 0.5), float(draw.random() < 0.5)] for id in ids}
    better = {id: [max(score, shift[clusters[id]]) for score in base[id]] for id in ids}
    found = over_questions({id: better[id] for id in reversed(ids)}, base, clusters)
    means = {id: sum(better[id]) / 2 - sum(base[id]) / 2 for id in ids}
    assert found.value == pytest.approx(sum(means.values()) / 60) and found.n == 60
    assert found.low is not None and found.high is not None and found.p is not None
    assert 0 < found.low < found.value < found.high and found.p < 0.05
    alone = over_questions(better, base, {id: id for id in ids})
    assert alone.low is not None and alone.high is not None
    assert found.high - found.low > alone.high - alone.low, "equal shifts within an image count once"


def test_p_over_questions_is_that_of_all_random_signs():
    sums = [2.0, -1.0, 3.0, 1.0, 0.0, 1.0]
    first = {f"q{i}": [s] for i, s in enumerate(sums)}
    second = {id: [0.0] for id in first}
    found = over_questions(first, second, {id: id for id in first})
    drawn = [
        sum(a * b for a, b in zip(signs, sums, strict=True)) for signs in itertools.product((1, -1), repeat=6)
    ]
    larger, smaller = (sum(f >= sum(sums) for f in drawn), sum(f <= sum(sums) for f in drawn))
    assert found.p == pytest.approx(min(1.0, 2 * min(larger, smaller) / 64))


def test_equal_answers_have_no_p():
    same = {"a": [1.0], "b": [0.0]}
    found = over_questions(same, same, {"a": "1", "b": "2"})
    assert (found.value, found.p) == (0.0, None)


def test_holm_is_over_all_differences_that_have_a_p():
    ps = [0.01, None, 0.04, 0.03]
    found = with_holm([Estimate(value=0.0, n=2, p=p) for p in ps])
    assert [each.p_holm for each in found] == [
        pytest.approx(0.03),
        None,
        pytest.approx(0.06),
        pytest.approx(0.06),
    ]


@pytest.mark.parametrize("base", [[0.1, 0.2, 0.7], [1 / 3, 2 / 3, 0.9], [0.51, 0.62]])
def test_differences_that_are_equal_but_for_rounding_have_no_p(base):
    found = over_seeds([(value + 0.1) - value for value in base])
    assert (found.p, found.low, found.high) == (None, found.value, found.value)
    assert over_seeds([0.1, 0.1 + 1e-9, 0.1]).p is not None


def test_one_cluster_has_no_interval_and_no_p():
    first, second = {"a": [1.0], "b": [1.0]}, {"a": [0.0], "b": [0.0]}
    found = over_questions(first, second, {"a": "image", "b": "image"})
    assert found == Estimate(value=1.0, n=2)
    assert over_questions({"a": [1.0]}, {"a": [0.0]}, {"a": "image"}) == Estimate(value=1.0, n=1)
    shares = {"a": [0.1, 0.2], "b": [0.3, 0.3]}, {"a": [0.3, 0.0], "b": [0.2, 0.4]}
    assert over_questions(*shares, {"a": "1", "b": "2"}).p is None, "equal but for rounding"
