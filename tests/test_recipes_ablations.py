"""The shipped grids: each can be read with all its recipes, and the large ones compare the same as the small ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lmmkit.ablation.arms import read_arms
from lmmkit.ablation.grid import BASE, read_grid
from lmmkit.plan.prepare import prepare
from lmmkit.recipe import TextScratch, VisionScratch
from lmmkit.recipe.shipped import GRIDS, shipped_grids
from lmmkit.scenes import World, write_biased_scenes

NAMES = sorted(name.removeprefix(GRIDS) for name in shipped_grids() if name.count("/") == 1)
ARMS = {
    "all_parts": 2, "all_parts_double": 2, "blank": 2, "data": 3, "decoder": 2, "directed_tokens": 3, "finetune_order": 2, "from_nothing": 2, "guided": 3,
    "guided_readings": 6, "low_weights": 3, "order_read": 2, "permutations": 3, "shuffling": 4, "token_place": 2, "weights": 6,
}  # fmt: skip

# instead of trained parts, which the tests do not have
ENCODER = VisionScratch(width=32, depth=2, heads=2, patch=8, image_size=64)
DECODER = TextScratch(width=32, depth=4, heads=2, mlp=64, context=256)


def test_the_paper_s_nine_ablations_and_seven_more_are_shipped():
    assert sorted(ARMS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_grid_is_read_with_all_its_recipes(name):
    tiny, small = (read_grid(shipped_grids()[f"{GRIDS}{size}{name}"]) for size in ("", "small/"))
    arms, larger = read_arms(tiny), read_arms(small)
    assert len(arms) == ARMS[name] and arms[0].name == BASE and len(tiny.grid.seeds) >= 5
    assert [arm.name for arm in larger] == [arm.name for arm in arms]
    assert small.grid.equal == tiny.grid.equal
    assert small.grid.measures == tiny.grid.measures and next(iter(tiny.grid.measures)) == "balanced"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("grids") / "world"
    write_biased_scenes(root, World(bias=0.9, count=100, heldout=30))
    return root


@pytest.mark.parametrize("size", ["", "small/"])
@pytest.mark.parametrize("name", NAMES)
def test_each_arm_of_a_grid_has_a_plan(name, size, world):
    for arm in read_arms(read_grid(shipped_grids()[f"{GRIDS}{size}{name}"])):
        text = replace(
            DECODER, depth=8 if size else 4
        )  # the depths in docs/ablations.md: `layers` names the last one
        model = replace(arm.recipe.model, vision=ENCODER, text=text)
        prepare(replace(arm.recipe, root=str(world), model=model))


@pytest.mark.parametrize("name", ["terms", "attention_box", "dpo"])
def test_a_grid_of_the_zoo_is_read(name):
    grid = read_grid(shipped_grids()[f"{GRIDS}zoo/{name}"])
    assert len(read_arms(grid)) == 1 + len(grid.grid.variants) and grid.grid.interval == "questions"


def test_what_the_variants_change():
    arms = {arm.name: arm.recipe for arm in read_arms(read_grid(shipped_grids()[f"{GRIDS}shuffling"]))}
    weights = {
        name: tuple(recipe.stages["pretrain"].losses[key].at(0.0) for key in ("image_order", "text_order"))
        for name, recipe in arms.items()
    }
    assert weights == {BASE: (1, 1), "image": (1, 0), "text": (0, 1), "none": (0, 0)}
