"""Means and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from lmmkit.evaluate.stats import mean_with_interval


def test_without_clusters_the_interval_is_the_binomial_one():
    values = [1.0] * 30 + [0.0] * 70
    got = mean_with_interval(values, [str(i) for i in range(100)])
    error = 1.96 * np.sqrt(0.3 * 0.7 / 100)
    assert got.value == pytest.approx(0.3) and got.n == 100
    assert got.low == pytest.approx(0.3 - error, rel=0.02) and got.high == pytest.approx(
        0.3 + error, rel=0.02
    )


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
