"""Means of groups are those of their items alone, next to the best constant answer."""

from __future__ import annotations

import pytest

from lmmkit.evaluate.benchmarks.benchmark import Item
from lmmkit.evaluate.group_means import best_constant_mean, group_means
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
