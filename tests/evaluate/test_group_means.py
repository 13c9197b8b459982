"""Means of groups are those of their items alone, next to the best constant answer."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lmmkit.evaluate.benchmarks.benchmark import Item
from lmmkit.evaluate.group_means import best_constant_mean, group_means, mean_of_ratios
from lmmkit.evaluate.stats import mean_with_interval


def items() -> list[Item]:
    kinds = ["9 words", "10 words", "9 words", "10 words", "100 words"]
    return [
        Item(id=str(i), prompt="?", cluster=f"image {i // 2}", groups={"length": kind} | ({"other": "x"} if i else {}))
        for i, kind in enumerate(kinds)
    ]  # fmt: skip


def test_each_group_is_the_mean_of_its_items():
    scores = [1.0, 0.0, 0.5, 1.0, 0.3]
    constants = [{"a": 1.0}, {"b": 1.0}, {"a": 0.6, "b": 0.3}, {"b": 1.0}, {}]
    found = group_means("accuracy", items(), scores, kinds=["length", "other"], constants=constants)
    assert list(found) == [
        "accuracy", "accuracy/9 words", "accuracy/10 words", "accuracy/100 words", "accuracy/x",
    ]  # fmt: skip
    assert found["accuracy"] == mean_with_interval(
        scores, [item.cluster for item in items()], chance=pytest.approx((1 + 0.3 + 1) / 5)
    )
    assert (found["accuracy/9 words"].value, found["accuracy/9 words"].chance) == (0.75, pytest.approx(0.8))
    assert (found["accuracy/10 words"].value, found["accuracy/10 words"].n) == (0.5, 2)
    assert found["accuracy/100 words"].chance == 0.0
    assert found["accuracy/x"].n == 4, "an item without the kind is in none of its groups"


def test_without_constants_there_is_no_chance_level():
    assert group_means("yes", items(), [1.0] * 5)["yes"].chance is None


def test_the_best_constant_answer_is_best_over_all_items():
    assert best_constant_mean([{"yes": 1.0}, {"yes": 0.6, "no": 1.0}, {"red": 1.0}]) == pytest.approx(1.6 / 3)
    assert best_constant_mean([{}, {}]) == 0.0
    assert best_constant_mean([]) is None


def random_part(draw: random.Random, n: int) -> list[tuple[float, float, str]]:
    """Returns (2 TP, 2 TP + FP + FN, image) of questions, with images on which the model is better or worse."""
    skill = {f"{i}": draw.choice([0.5, 0.8, 0.95]) for i in range(n // 5)}
    part = []
    for i in range(n):
        image = f"{i % len(skill)}"
        present = draw.random() < 0.5
        yes = present if draw.random() < skill[image] else not present
        part.append((2.0 * (yes and present), float(yes + present), image))
    return part


def test_the_interval_of_ratios_is_that_of_drawing_clusters():
    draw = random.Random(0)
    parts = [random_part(draw, 1000), random_part(draw, 900)]
    found = mean_of_ratios(parts)
    ratios = [sum(a for a, _, _ in part) / sum(b for _, b, _ in part) for part in parts]
    assert found.value == pytest.approx(sum(ratios) / 2) and found.n == 1900

    images = sorted({image for part in parts for _, _, image in part})
    sums = np.zeros((len(images), 4))
    for column, part in zip((0, 2), parts, strict=True):
        for a, b, image in part:
            sums[images.index(image), column] += a
            sums[images.index(image), column + 1] += b
    rng = np.random.default_rng(0)
    drawn = sums[rng.integers(len(images), size=(4000, len(images)))].sum(1)
    low, high = np.percentile((drawn[:, 0] / drawn[:, 1] + drawn[:, 2] / drawn[:, 3]) / 2, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.1 * (high - low))
    assert found.high == pytest.approx(high, abs=0.1 * (high - low))


def test_intervals_of_ratios_of_0_and_1_are_not_empty():
    for a in (0.0, 1.0):
        found = mean_of_ratios([[(a, 1.0, f"{i}") for i in range(10)]])
        assert found.value == a and found.high - found.low > 0.2
    nothing = mean_of_ratios([[(0.0, 0.0, "1"), (0.0, 0.0, "2")]])
    assert (nothing.value, nothing.n) == (0.0, 2)
    assert mean_of_ratios([[(1.0, 1.0, "1")], [(0.0, 0.0, "2")]]).value == 0.5
    assert mean_of_ratios([]).n == 0
