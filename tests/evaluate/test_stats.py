"""Means and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from lmmkit.evaluate.stats import mean_with_interval, wilson


def by_search(mean, n):
    """Returns Wilson's interval in the slow way: all shares from which `mean` is less than 1.96 errors away."""
    share = np.linspace(0, 1, 200_001)
    inside = share[np.abs(mean - share) <= 1.959964 * np.sqrt(share * (1 - share) / n)]
    return inside.min(), inside.max()


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (0, 1), (1, 1), (1, 10), (30, 100), (999, 1000)])
def test_without_clusters_the_interval_is_wilson_s(right, n):
    got = mean_with_interval([1.0] * right + [0.0] * (n - right), [str(i) for i in range(n)])
    assert got.value == pytest.approx(right / n) and got.n == n
    low, high = by_search(right / n, n)
    assert wilson(right / n, n) == pytest.approx((low, high), abs=2e-5)
    assert (got.low, got.high) == pytest.approx((low, high), abs=0.01)
    assert got.low <= got.value <= got.high


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_answers_to_all_questions_leave_room(value):
    """Ten right answers of ten are not rare for a model with 80 % (one time in nine)."""
    got = mean_with_interval([value] * 10, [str(i) for i in range(10)])
    assert abs(value - got.low) + abs(value - got.high) > 0.2
    scenes = mean_with_interval([value] * 30, [str(i // 3) for i in range(30)])
    assert (scenes.low, scenes.high) == pytest.approx((got.low, got.high)), "ten scenes are ten, not thirty"


@pytest.mark.parametrize("truth", [0.02, 0.98])
def test_the_interval_covers_a_truth_near_the_ends_as_often_as_it_should(truth):
    rng, hits = np.random.default_rng(1), 0
    for _ in range(400):
        scene = rng.random(60) < truth
        values = np.repeat(scene, 3).astype(float)  # all questions of a scene alike
        got = mean_with_interval(values.tolist(), [str(i // 3) for i in range(180)])
        hits += got.low <= truth <= got.high
    assert hits / 400 >= 0.93


def test_equal_answers_within_a_scene_widen_the_interval():
    values = [1.0, 1.0, 1.0] * 30 + [0.0, 0.0, 0.0] * 70
    alone = mean_with_interval(values, [str(i) for i in range(300)])
    together = mean_with_interval(values, [str(i // 3) for i in range(300)])
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(np.sqrt(3), rel=0.02)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        scene = rng.beta(2, 2, 80)
        values = (rng.random((80, 3)) < scene[:, None]).astype(float).ravel()
        got = mean_with_interval(values.tolist(), [str(i // 3) for i in range(240)])
        hits += got.low <= 0.5 <= got.high
    assert 0.92 <= hits / 400 <= 0.98


def test_no_values_give_no_mean():
    assert np.isnan(mean_with_interval([], []).value)
