"""SIGKILL at random points, and death before every change to the disk: nothing lost, nothing corrupt, every bit the same.

The slow tests are of 200 deaths; those beside them of a few. Two data workers, throughout.
"""

from __future__ import annotations

import random
import shutil
import time

import pytest

from lmmkit.runs.run_folder import RunFolder
from tests.conftest import PLAIN
from tests.support.killed_runs import (
    CRASHED,
    Witness,
    assert_same,
    dies_at,
    end,
    kill_after,
    points_of,
    start,
)

RUN = (
    "stages.pretrain.length.steps=3", "stages.finetune.length.steps=5", "output.save_every=2", "output.images_every=0",
    "speed.workers=2", "stages.finetune.validate={every: 3, data: heldout, samples: 4, best: loss}",
)  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(scenes, tmp_path_factory):
    """Returns a recipe, its undisturbed run, the points of it in order, and how long one takes."""
    from lmmkit.recipe import read_text

    recipe = read_text(PLAIN, overrides=RUN, root=scenes)
    out = tmp_path_factory.mktemp("kills") / "whole"
    names = points_of(recipe, out)
    began = time.perf_counter()
    assert end(start(recipe, out.with_name("again"))) == 0
    return recipe, RunFolder(out), names, time.perf_counter() - began


def kill_at_random(undisturbed, out, kills: int, seed: int) -> int:
    """Kills until there were so many; gives how many runs came through, each with the same bits."""
    recipe, whole, _, seconds = undisturbed
    rng, done, came_through, witness = random.Random(seed), 0, 0, Witness(RunFolder(out))
    while done < kills or came_through == 0 or out.exists():
        code = kill_after(start(recipe, out), rng.uniform(0.0, seconds) if done < kills else 600)
        witness.look()
        if code == 0:
            assert_same(RunFolder(out), whole, recipe.stages)
            shutil.rmtree(out)
            came_through, witness = came_through + 1, Witness(RunFolder(out))
        else:
            assert code == -9, f"the child ended with {code}"
            done += 1
    return came_through


def die_at_points(undisturbed, out, numbers, *, twice: bool = False) -> int:
    """Kills a run at each number (`twice`: again when resumed) and completes it; returns the deaths."""
    recipe, whole, _, _ = undisturbed
    deaths = 0
    for number in numbers:
        witness = Witness(RunFolder(out))
        for point in (number, *([1 + number % 7] if twice else ())):
            code = end(start(recipe, out, dies_at(point)))
            assert code == CRASHED, f"the child ended with {code}"
            deaths += 1
            witness.look()
        assert end(start(recipe, out)) == 0
        witness.look()
        assert_same(RunFolder(out), whole, recipe.stages)
        shutil.rmtree(out)
    return deaths


def test_the_points_are_those_of_all_that_a_run_hangs_on(undisturbed):
    names = set(undisturbed[2])
    assert {
        "publish run.json", "append to metrics.jsonl", "make the folder", "write manifest.json", "publish", "prune", "delete",
        "make the folder of frozen weights", "write a-frozen-00000.safetensors", "sync b-frozen-00000.safetensors",
        "sync the folder of frozen weights",
        "write model.safetensors", "publish the folder", "set the old folder aside", "sync the run",
    } <= names  # fmt: skip


@pytest.mark.slow
def test_killed_a_few_times_at_random(undisturbed, tmp_path):
    assert kill_at_random(undisturbed, tmp_path / "run", 8, seed=1) >= 1


def test_dead_before_a_few_changes_to_the_disk(undisturbed, tmp_path):
    names = undisturbed[2]
    few = {names.index(name) + 1 for name in ("publish", "publish the folder")}
    assert die_at_points(undisturbed, tmp_path / "run", sorted(few), twice=True) == 2 * len(few)


@pytest.mark.slow
def test_killed_a_hundred_times_at_random(undisturbed, tmp_path):
    runs = kill_at_random(undisturbed, tmp_path / "run", 100, seed=2)
    print(
        f"100 kills at random points, {runs} runs through, 0 checkpoints corrupt or lost, every bit the same"
    )


@pytest.mark.slow
def test_dead_before_every_change_to_the_disk(undisturbed, tmp_path):
    numbers = range(1, len(undisturbed[2]) + 1)
    deaths = die_at_points(undisturbed, tmp_path / "run", numbers)
    print(f"{deaths} deaths, one at every point of a run: 0 checkpoints corrupt or lost, every bit the same")


@pytest.mark.slow
def test_dead_twice_in_a_row(undisturbed, tmp_path):
    numbers = range(3, len(undisturbed[2]) + 1, 5)
    deaths = die_at_points(undisturbed, tmp_path / "run", numbers, twice=True)
    print(f"{deaths} deaths, two a run: 0 checkpoints corrupt or lost, every bit the same")
