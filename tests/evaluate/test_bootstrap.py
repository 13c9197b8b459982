"""The cluster bootstrap beside a plain loop, and how often its intervals cover the truth."""

from __future__ import annotations

import numpy as np
import pytest

from lmmkit.evaluate import bootstrap
from lmmkit.evaluate.bootstrap import cluster_bootstrap, paired_difference


def by_loop(values, clusters, draws: int, seed: int) -> tuple[float, float]:
    """Draws clusters with replacement, one bootstrap sample at a time."""
    rng, names = np.random.default_rng(seed), sorted(set(clusters))
    members = [[v for v, c in zip(values, clusters, strict=True) if c == name] for name in names]
    means = [
        np.mean([v for k in rng.integers(len(names), size=len(names)) for v in members[k]])
        for _ in range(draws)
    ]
    return tuple(np.percentile(means, [2.5, 97.5]))


def mean_of(values, clusters):
    """Returns the mean with its interval: the difference from zero."""
    return paired_difference(values, [0.0] * len(values), clusters)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_interval_is_that_of_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    clusters = [str(k) for k in rng.integers(25, size=120)]
    values = rng.random(120)
    columns = np.stack([values, np.ones(120)], 1)
    fast = cluster_bootstrap(columns, clusters, lambda s: s[..., 0] / s[..., 1], draws=300, seed=5)
    assert fast == pytest.approx(by_loop(values, clusters, 300, 5), abs=1e-12)


def test_blocks_give_the_same_interval(monkeypatch):
    values, clusters = np.arange(60) % 7, [str(i // 3) for i in range(60)]
    columns = np.stack([values, np.ones(60)], 1).astype(float)
    mean = lambda s: s[..., 0] / s[..., 1]
    whole = cluster_bootstrap(columns, clusters, mean)
    monkeypatch.setattr(bootstrap, "BLOCK", 20 * 17)
    assert cluster_bootstrap(columns, clusters, mean) == pytest.approx(whole, abs=1e-12)


def test_any_statistic_of_sums_has_an_interval():
    rng = np.random.default_rng(0)
    gold, answered_yes = rng.random(400) < 0.5, rng.random(400) < 0.6
    columns = np.stack([gold & answered_yes, ~gold & answered_yes, gold & ~answered_yes], 1).astype(float)
    f1 = lambda s: 2 * s[..., 0] / (2 * s[..., 0] + s[..., 1] + s[..., 2])
    low, high = cluster_bootstrap(columns, [str(i // 4) for i in range(400)], f1)
    assert low < f1(columns.sum(0)) < high and high - low < 0.2


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        scene = rng.beta(2, 2, 80)
        values = (rng.random((80, 3)) < scene[:, None]).astype(float).ravel()
        figure = mean_of(values.tolist(), [str(i // 3) for i in range(240)])
        hits += figure.low <= 0.5 <= figure.high
    assert 0.90 <= hits / 200 <= 0.99


def test_a_paired_difference_is_narrower_than_two_means():
    rng = np.random.default_rng(2)
    first = (rng.random(500) < 0.6).astype(float)
    second = np.where(rng.random(500) < 0.05, 1 - first, first)
    clusters = [str(i) for i in range(500)]
    figure = paired_difference(first.tolist(), second.tolist(), clusters)
    assert figure.value == pytest.approx(float((first - second).mean())) and figure.n == 500
    alone = mean_of(first.tolist(), clusters)
    assert figure.high - figure.low < 0.7 * (alone.high - alone.low)
    same = paired_difference(first.tolist(), first.tolist(), clusters)
    assert same.low == same.value == same.high == 0


def test_equal_seeds_give_equal_intervals():
    values, clusters = [1.0, 0.0, 1.0, 1.0], ["a", "a", "b", "c"]
    assert mean_of(values, clusters) == mean_of(values, clusters)


def test_a_single_cluster_has_no_interval():
    found = mean_of([1.0, 0.0, 1.0], ["a", "a", "a"])
    assert (found.value, found.low, found.high) == (pytest.approx(2 / 3), None, None)
    assert mean_of([1.0, 0.0], ["a", "b"]).low == 0.0
