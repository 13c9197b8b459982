"""The parameters of a biased world."""

from __future__ import annotations

import math

import pytest

from lmmkit.scenes.world import World


def codes(world: World) -> list[str]:
    return [problem.code for problem in world.problems()]


@pytest.mark.parametrize("bias", [0.0, 0.5, 1])
def test_shares_are_fine(bias):
    assert codes(World(bias=bias)) == []


@pytest.mark.parametrize("bias", [-0.1, 1.01, 90, math.nan, math.inf])
def test_other_numbers_are_no_bias(bias):
    assert codes(World(bias=bias)) == ["scenes/bias"]


def test_all_problems_are_reported_at_once():
    found = World(bias=2, kinds=("colour/plaice", "count", "size")).problems()
    assert [problem.code for problem in found] == [
        "scenes/bias",
        "scenes/unknown-kind",
        "scenes/unknown-kind",
    ]
    assert "colour/place" in found[1].hint and "presence" in found[2].expected
    assert codes(World(bias=0.9, kinds=())) == ["scenes/unknown-kind"]


def test_there_are_as_many_texts_as_scenes_unless_another_number_is_given():
    assert World(bias=0.9, count=7).texts == 7
    assert World(bias=0.9, count=7, text_records=3).texts == 3
