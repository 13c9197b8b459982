"""Training on records with several images that are cut into tiles, between the words of a question."""

from __future__ import annotations

import json
import re

import pytest
import torch

import lmmkit
from lmmkit import build
from lmmkit.cost_estimate import estimate
from lmmkit.data.image_files.image_file import image_size
from lmmkit.errors import UserError
from lmmkit.evaluate.run import readable
from lmmkit.objective import sum_by_name
from lmmkit.plan.dry_run.run import plugin_problems
from lmmkit.plan.prepare import prepare
from lmmkit.recipe import dump, read_text
from lmmkit.training.run import train
from tests.conftest import PLAIN
from tests.data.test_images import noisy_image
from tests.test_cli import run as command

SIZES = [(40, 11), (9, 31), (70, 66), (5, 6), (1, 1), (150, 48), (24, 24)]  # width, height
ASKED = [[0, 1], [2], [3, 4, 5], [], [6, 0]]
FIT = "{kind: anyres, max_tiles: 4}"
POOL, SHUFFLE = (  # 6 x 6 patches become 3 x 3 rows
    ["model.vision.patch=4", f"model.connector={{kind: {kind}, factor: 2}}"]
    for kind in ("average_pool", "pixel_shuffle")
)


def write_shapes(folder):
    """Writes the images and the records that ask about them."""
    for i, size in enumerate(SIZES):
        noisy_image(*size, seed=i).save(folder / f"{i}.png")
    write(folder / "records.json", ASKED)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Writes records with none to three images, which the questions name between their words."""
    folder = write_shapes(tmp_path_factory.mktemp("shapes"))
    noisy_image(1, 100).save(folder / "narrow.png")
    write(folder / "narrow.json", [*ASKED, ["narrow"]])
    return folder


def write(path, asked) -> None:
    rows = []
    for i, images in enumerate(asked):
        words = "".join(f"look at <image> and {n} " for n, _ in enumerate(images))
        talk = [{"from": "human", "value": f"{words}now?"}, {"from": "gpt", "value": "a red circle"}]
        row = {"id": f"r{i}", "conversations": talk}
        rows.append(row | ({"image": [f"{name}.png" for name in images]} if images else {}))
    path.write_text(json.dumps(rows))


@pytest.fixture
def recipe(folder, scenes):
    """recipe(*overrides, records=...) -> the plain recipe, with these records in its last stage."""

    def read(*overrides, records: str = "records.json"):
        source = f"{{kind: llava, records: {folder / records}, images: {folder}, template: vicuna_v1, image_fit: {FIT}}}"
        changes = [
            f"data.questions={source}", f"data.heldout={source}",
            "evaluate.tasks={answers: {kind: questions, data: heldout, max_new_tokens: 4}}", f"model.chat.image_fit={FIT}", "model.text.context=400",
            "stages.pretrain.length.steps=1", "stages.finetune.length.steps=2", "stages.finetune.batch.samples=5",
        ]  # fmt: skip
        return read_text(PLAIN, name="tiles.yaml", overrides=[*changes, *overrides], root=scenes)

    return read


def test_a_run_learns_the_newline_row_and_its_model_answers(recipe, folder, tmp_path):
    run = train(recipe("output.save_every=0", "output.images_every=1"), out=tmp_path / "run").run
    before, after = (
        lmmkit.load(run.model(stage), device="cpu").objective.lmm.connector.newline.row
        for stage in ("pretrain", "finetune")
    )
    assert not torch.equal(before, after) and torch.isfinite(after).all()
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in run.read_metrics())
    shown = [str(folder / f"{i}.png") for i in (2, 3)]
    answers = [
        lmmkit.load(run.path, device="cpu").reply("what <image> is <image> this", images, max_new_tokens=4)
        for images in (shown, shown[::-1])
    ]
    assert all(isinstance(answer, str) for answer in answers)
    text = command("eval", run.path)
    assert "answers" in text and "blank" in text


@pytest.mark.parametrize("parts", [[], POOL, SHUFFLE], ids=["mlp", "average_pool", "pixel_shuffle"])
def test_packed_samples_have_the_losses_of_each_alone(recipe, parts):
    """Packs five records with eight images in one micro-batch, and each of them in one of its own."""
    found = []
    for room in (8192, 64):
        prepared = prepare(
            recipe(f"speed.tokens={room}", "model.text.width=48", "model.text.heads=4", *parts)
        )
        stage = prepared.recipe.stages["finetune"]
        objective = build.build_objective(prepared.recipe, {}, prepared.dims, torch.device("cpu"))
        build.set_stage(objective, prepared.plans["finetune"], stage, seed=0)
        step = prepared.pipeline("finetune").step(0)
        sums = sum_by_name({n: float(x.detach()) for n, x in objective(batch).sums.items()} for batch in step)
        found.append((len(step), sums["next_token"], sum(len(batch.target_S) for batch in step)))
    (one, packed, targets), (each, alone, same) = found
    assert (one, targets) == (1, same) and each == len(ASKED)
    assert packed == pytest.approx(alone, rel=1e-5) and packed > 0


@pytest.mark.parametrize("parts", [POOL, SHUFFLE], ids=["average_pool", "pixel_shuffle"])
def test_a_connector_makes_rows_of_several_patches_of_each_tile(recipe, folder, tmp_path, parts):
    """Takes the rows of an encoder that has a patch for each of them, in training, answers and evaluation."""
    plain, prepared = (
        prepare(recipe()),
        prepare(recipe("output.save_every=0", "output.images_every=1", *parts)),
    )
    assert prepared.dims.image.grid == (6, 6) and prepared.dims.image.row_grid == plain.dims.image.grid == (
        3,
        3,
    )
    every = [each.sources["questions"] for each in (plain, prepared)]
    for one, other in zip(*every, strict=True):
        rows = [each.views("finetune").rows_of_sample(s) for each, s in ((plain, one), (prepared, other))]
        assert [rows[0](image) for image in one.images] == [rows[1](image) for image in other.images]
    run = train(prepared.recipe, out=tmp_path / "run").run
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in run.read_metrics())
    ours = lmmkit.load(run.path, device="cpu")
    assert isinstance(ours.reply("what <image> this", [str(folder / "2.png")], max_new_tokens=4), str)
    assert "answers" in command("eval", run.path)


def test_rows_and_tiles_are_shown_and_estimated(recipe, folder, scenes, tmp_path):
    prepared = prepare(recipe())
    few = prepare(recipe("data.questions.image_fit={kind: anyres, max_tiles: 2}"))
    rows, fewer = (estimate(p, "finetune", flops=1e12)["tokens_per_step"] for p in (prepared, few))
    sample, rows_of = prepared.sources["questions"][2], prepared.views("finetune").rows_of_sample
    counted = [rows_of(sample)(image) for image in sample.images]
    assert len(set(counted)) == 3 and min(counted) > prepared.dims.image.tokens and rows > fewer
    path = tmp_path / "mine.yaml"
    path.write_text(dump(recipe()))
    text = command("data", "show", path, "questions", "--root", scenes, "--count", 5)
    for image, n in zip(sample.images, counted, strict=True):
        height, width = image_size(image)
        assert re.search(rf"{width} x {height} pixels on \d x \d tiles, {n} rows", text)
        assert f"[image x {n}]" in text
    text = command("check", path, "--root", scenes, "--images")
    assert "anyres 1x2, 2x1, 2x2, 3x1, 1x3: an overview and at most 4 tiles" in text


def test_an_image_that_no_patch_shows_is_named_before_and_in_training(recipe, folder, scenes, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(dump(recipe(records="narrow.json")))
    text = command("check", path, "--root", scenes, "--images", code=2)
    assert "image/narrow" in text and "narrow.json" in text and "record 5" in text
    words = ("questions", "--root", scenes, "--report", tmp_path / "bad.jsonl")
    for more in ([], ["--decode"]):
        text = command("data", "check", path, *words, *more, code=2)
        assert "image/narrow" in text and "record 5" in text and "all good" not in text
    (line,) = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert json.loads(line)["code"] == "image/narrow" and "narrow.png: 1 x 100" in json.loads(line)["got"]
    text = command("data", "check", path, *words, "--set", "data.questions.image_fit=pad")
    assert "6 records, all good" in text
    gone = ("--set", f"model.vision={{from: {tmp_path / 'gone'}}}")
    text = command("data", "check", path, *words, *gone, code=2)
    assert "gone" in text and "all good" not in text
    skipping, lines = prepare(recipe("data.questions.bad_records=skip", records="narrow.json")), []
    kept = readable(skipping.sources["questions"], "all", skipping.reader("finetune"), lines.append)
    assert [sample.key for sample in kept] == [f"questions:r{i}" for i in range(len(ASKED))]
    assert len(lines) == 1 and "narrow.png" in lines[0] and "1 x 100 pixels" in lines[0]
    write(folder / "between.json", [[0], ["narrow", 6], ["narrow"], [2]])
    path.write_text(dump(recipe(records="between.json")))
    text = command("data", "show", path, "questions", "--root", scenes, "--count", 4, code=2)
    assert "2 problems" in text and all(f"record {i}), {folder / 'narrow.png'}" in text for i in (1, 2))
    assert all(f"questions:r{i} " in text for i in range(4)) and "70 x 66 pixels on" in text
    prepared = prepare(recipe("stages.finetune.batch.samples=6", records="narrow.json"))
    with pytest.raises(UserError, match="image/narrow") as error:
        prepared.pipeline("finetune").step(0)
    assert "narrow.png" in str(error.value) and "record 5" in str(error.value)


def test_a_check_of_data_knows_the_squares_of_the_connector(recipe, folder, scenes, tmp_path):
    """Checks an image of which patches show something, and squares of patches nothing."""
    noisy_image(1, 4).save(folder / "slim.png")
    write(folder / "slim.json", [["slim"]])
    path, words = tmp_path / "mine.yaml", ("questions", "--root", scenes, "--report", tmp_path / "bad.jsonl")
    for parts, code in ((POOL[:1], 0), (POOL, 2)):
        path.write_text(dump(recipe(*parts, records="slim.json")))
        texts = [
            command("data", "check", path, *words, code=code),
            command("check", path, "--root", scenes, "--images", code=code),
        ]
        assert all(("image/narrow" in text and "slim.png" in text) == bool(code) for text in texts)
    path.write_text(dump(recipe(POOL[0], POOL[1].replace("2}", "7}"), records="records.json")))
    assert "all good" in command("data", "check", path, *words), "the factor is no matter of the data"
    assert "plan/connector" in command("check", path, "--root", scenes, code=2)


def test_an_edit_of_tiles_is_found_before_a_run(recipe):
    share = "plugins={colour: {share: 1.0}}", "stages.finetune.losses={next_token: 1.0, colour: 1.0}"
    (problem,) = plugin_problems(prepare(recipe(*share)))
    assert (problem.code, problem.where) == ("plan/tiles", "plugins.colour")
