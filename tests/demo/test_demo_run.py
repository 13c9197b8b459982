"""The model that comes with lmmkit: what its folder contains, that it answers, and the run around it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import lmmkit
from lmmkit.demo.demo_run import DEMO_MODEL, write_demo_run
from lmmkit.demo.image import draw_image
from lmmkit.recipe import diff, digest, read_recipe
from lmmkit.recipe.shipped import find_recipe
from lmmkit.report.loaded_run import load_runs
from lmmkit.runs.list_runs import summarise_run

NUMBERS = {1: "one", 2: "two", 3: "three"}
FILES = {"README.md", "config.json", "model.safetensors", "recipe.yaml", "tokenizer.model"}


@pytest.fixture(scope="module")
def model():
    return lmmkit.load(DEMO_MODEL)


def test_the_folder_has_a_model_below_four_megabytes_and_no_pickle():
    assert {path.name for path in DEMO_MODEL.iterdir()} == FILES
    assert sum(path.stat().st_size for path in DEMO_MODEL.iterdir()) < 4_000_000


def test_it_is_the_model_of_the_quickstart_s_recipe():
    here = read_recipe(DEMO_MODEL / "recipe.yaml")
    changes = diff(read_recipe(find_recipe(Path("quickstart"))), here)
    assert not [each.key for each in changes if each.section_class in ("mathematics", "data")], (
        "train it again, as its README says"
    )


def test_it_counts_the_objects_of_scenes_it_has_not_seen(model, tmp_path):
    right = []
    for number in range(12):
        image = draw_image(tmp_path, number)
        answer = model.reply("How many objects are there?", str(image.path))
        right.append(answer == NUMBERS[image.content.count("(")])
    assert sum(right) >= 11, right
    blank = tmp_path / "blank.png"
    Image.new("RGB", (64, 64), "white").save(blank)
    replies = {model.reply("What shape is the red object?", str(blank)) for _ in range(2)}
    assert len(replies) == 1, "greedy answers are the same"


def test_the_run_around_it_is_done_and_has_no_log(tmp_path):
    run = write_demo_run(tmp_path / "direct", tmp_path / "scenes")
    shown = summarise_run(run)
    assert (shown.state, shown.recipe) == ("done", digest(read_recipe(DEMO_MODEL / "recipe.yaml"))[:8])
    (found,) = load_runs([run.path])
    assert not found.unfinished and not found.steps and any("metrics.jsonl" in text for text in found.missing)
    assert run.root == str(tmp_path / "scenes")
    assert {path.name for path in run.model("finetune").iterdir()} == FILES
