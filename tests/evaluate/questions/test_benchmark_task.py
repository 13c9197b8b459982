"""A benchmark as a task, from a recipe and from the command line, on a real model."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmmkit.api.model_info import ImageSpec
from lmmkit.api.sample import AnyRes
from lmmkit.errors import UserError
from lmmkit.evaluate import kinds
from lmmkit.evaluate.answers.answers_file import read_answers
from lmmkit.evaluate.benchmarks.names import BENCHMARKS
from lmmkit.evaluate.kinds import task_problems, tasks_of
from lmmkit.evaluate.questions.benchmark_task import BenchmarkTask, check_image_files
from lmmkit.evaluate.task import Figure
from lmmkit.recipe import Task
from lmmkit.runs.files import read_jsonl
from tests.conftest import PLAIN
from tests.data.test_images import noisy_image
from tests.support.random_chat_model import random_chat_model
from tests.support.toy_benchmark import Toy, write_toy

SPEC = ImageSpec(size=24, grid=(3, 3), width=8)


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """Registers the toy benchmark; returns the folder above its files."""
    monkeypatch.setitem(BENCHMARKS, "toy", Toy)
    monkeypatch.setitem(kinds.TASKS, "toy", BenchmarkTask)
    for i in range(2):
        Image.effect_noise((30 + i, 20), 80).convert("RGB").save(tmp_path / f"{i}.png")
    write_toy(tmp_path / "files" / "toy", [tmp_path / "0.png", tmp_path / "1.png"])
    return tmp_path / "files"


def test_a_recipe_names_a_benchmark(tiny, toy, tmp_path):
    recipe = tiny(f"evaluate.tasks={{toy: {{files: {toy}, samples: 4}}}}", text=PLAIN)
    assert task_problems(recipe) == []
    (task,) = tasks_of(recipe).values()
    assert task.figures(None) == {"accuracy": "higher"}
    figures = task.run(random_chat_model(recipe), ())
    assert figures["accuracy"].n == 4


def test_the_table_has_of_the_controls_the_headline_alone(toy):
    task = BenchmarkTask("toy", Task(kind="toy", files=str(toy)))
    names = ["accuracy", "accuracy/easy", "other", "accuracy_blank", "accuracy_blank/easy", "other_blank", "visual_gain", "visual_gain_swapped", "visual_gain/other", "visual_gain_swapped/other", "changed_blank"]  # fmt: skip
    table = task.table({name: Figure(value=0.5, n=4) for name in names})
    assert [line[0] for line in table[1:]] == [
        "accuracy", "accuracy/easy", "other", "accuracy_blank", "visual_gain", "visual_gain_swapped", "visual_gain/other",
        "visual_gain_swapped/other", "changed_blank",
    ]  # fmt: skip


def test_differences_have_signs_and_shares_of_the_probe_are_in_percent():
    figure = Figure(value=-0.5, low=-0.75, high=0.25, n=4)
    names = ("perception", "visual_gain", "visual_gain/perception", "changed_blank")
    lines = BenchmarkTask("mme", Task(kind="mme", files=".")).table(dict.fromkeys(names, figure))
    assert [line[1] for line in lines] == [
        "points", "-0.5 (-0.8-0.2)", "-50.0 (-75.0 to +25.0) %", "-0.5 (-0.8 to +0.2)", "-50.0 (-75.0-25.0) %",
    ]  # fmt: skip


@pytest.mark.parametrize(("given", "got"), [("", "no folder"), (", files: nowhere", "nowhere/toy")])
def test_missing_official_files_are_found_before_a_run(tiny, toy, given, got):
    recipe = tiny(f"evaluate.tasks={{x: {{kind: toy{given}}}}}", text=PLAIN)
    (problem,) = task_problems(recipe)
    assert problem.code == "answers/no-files" and "evaluate.tasks.x" in problem.where and got in problem.got


def test_all_images_that_cannot_be_opened_are_named(toy):
    items = Toy().items(toy / "toy", split="test", cache=toy)
    check_image_files(items, "pad", SPEC)
    names = [Path(image) for image in dict.fromkeys(image for item in items for image in item.images)]
    names[0].write_bytes(b"no image")
    names[1].unlink()
    with pytest.raises(UserError) as error:
        check_image_files(items, "pad", SPEC)
    assert [p.code for p in error.value.problems] == ["image/format", "image/file"]
    for name in names:
        noisy_image(1, 100).save(name)
    with pytest.raises(UserError) as error:
        check_image_files(items, AnyRes(), SPEC)
    assert [p.code for p in error.value.problems] == ["image/narrow"] * len(names)


def test_answers_are_kept_by_the_folder_of_the_task(tiny, toy, tmp_path):
    from lmmkit.evaluate.keep import Keep

    recipe = tiny(f"evaluate.tasks={{toy: {{files: {toy}}}}}", text=PLAIN)
    (task,) = tasks_of(recipe).values()
    keep = Keep(folder=tmp_path / "kept", model={"checkpoint": "c", "folder": "m"})
    figures = task.run(random_chat_model(recipe), (), controls=("blank", "none"), keep=keep)
    answers = read_answers(tmp_path / "kept" / "answers.jsonl")
    assert len(answers) == 7 + 6 + 6 and {a.task for a in answers} == {"toy"}
    assert all(a.n_new_tokens <= 5 for a in answers)
    assert set(figures) >= {"accuracy", "accuracy_blank", "accuracy_none", "visual_gain", "leakage"}
    lines = read_jsonl(tmp_path / "kept" / "attention.jsonl")
    masses = [line["mass"] for line in lines]
    assert figures["image_attention"].value == pytest.approx(sum(masses) / len(masses))
    assert figures["image_attention"].chance == pytest.approx(
        sum(line["even"] for line in lines) / len(lines)
    )
    own = {a.id: a for a in answers if a.condition == "own"}
    assert {line["id"] for line in lines} == {a.id for a in own.values() if a.images and a.raw}
    for line in lines:
        values = np.frombuffer(base64.b64decode(line["map"]), np.uint8).reshape(line["grid"])
        assert values.max() == 255 and 0 < line["mass"] < 1
        # one image: the map adds up to the mass, up to the rounding of its bytes
        assert values.sum() / 255 * line["peak"] == pytest.approx(line["mass"], rel=0.02)
    before = (tmp_path / "kept" / "attention.jsonl").read_bytes()
    again = task.run(random_chat_model(recipe), (), controls=("blank", "none"), keep=keep)
    assert again == figures and (tmp_path / "kept" / "attention.jsonl").read_bytes() == before
    assert task.facts(keep)["coverage"]["answered"] == 7
    assert json.loads((tmp_path / "kept" / "answers.json").read_text())["prompt"]["template"] == ["vicuna_v1"]
