"""Training on images that keep their shape, several in a record, beside images of one size."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import lmmkit
from lmmkit import build
from lmmkit.api.sample import Native
from lmmkit.attention.backends import Flash, Sdpa
from lmmkit.attention.eager import Eager
from lmmkit.attention.interface import Heads
from lmmkit.cost_estimate import Load, estimate
from lmmkit.data.image_files.image_file import image_size
from lmmkit.data.images import normalise, read_image
from lmmkit.errors import UserError
from lmmkit.import_export import export_model
from lmmkit.objective import sum_by_name, total
from lmmkit.plan.dry_run.run import plugin_problems
from lmmkit.plan.explain import plan_text
from lmmkit.plan.prepare import prepare
from lmmkit.recipe import dump, read_text
from lmmkit.training.monitoring.image_logging import stage_images
from lmmkit.training.run import train
from lmmkit.training.triggers import Position
from lmmkit.verify_export import require_equal, verify_export
from tests.conftest import PLAIN
from tests.support.fake_cuda import gradients, on_card
from tests.test_cli import run as command
from tests.training.test_run_tiles import ASKED, write, write_shapes

FIT = "{kind: native, max_patches: 30, multiple: 3}"
TIMM = "model.vision={timm: vit_tiny_patch16_224, weights: none, image_size: 24, args: {patch_size: 8, embed_dim: 24, depth: 2, num_heads: 2%s}}"
HEADS_OF_8 = TIMM.replace("num_heads: 2", "num_heads: 3") % ", dynamic_img_size: true"
POOL, SHUFFLE, RESAMPLER = (
    f"model.connector={{kind: {kind}}}"
    for kind in (
        "average_pool, factor: 3",
        "pixel_shuffle, factor: 3",
        "resampler, queries: 5, depth: 1, heads: 2",
    )
)
ORDER = "plugins={image_order: {grid: %d, permutations: 5}, directed_token: {place: end}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Writes records with none to three images of unlike sizes, which the questions name between their words."""
    return write_shapes(tmp_path_factory.mktemp("native"))


@pytest.fixture
def recipe(folder, scenes):
    """recipe(*overrides, text=..., fit=...) -> a recipe with these records in its last stage."""

    def read(*overrides, text: str = PLAIN, fit: str = FIT):
        source = f"{{kind: llava, records: {folder / 'records.json'}, images: {folder}, template: vicuna_v1, image_fit: {fit}}}"
        changes = [
            f"data.questions={source}", f"data.heldout={source}", f"model.chat.image_fit={fit}", "model.text.context=400",
            "evaluate.tasks={answers: {kind: questions, data: heldout, max_new_tokens: 4}}",
            "stages.pretrain.length.steps=1", "stages.finetune.length.steps=2", "stages.finetune.batch.samples=5",
        ]  # fmt: skip
        return read_text(text, name="native.yaml", overrides=[*changes, *overrides], root=scenes)

    return read


def losses(recipe) -> tuple[int, float]:
    """Returns the number of micro-batches of the first step of the last stage, and the sum of its loss."""
    prepared = prepare(recipe)
    objective = build.build_objective(prepared.recipe, {}, prepared.dims, torch.device("cpu"))
    build.set_stage(objective, prepared.plans["finetune"], prepared.recipe.stages["finetune"], seed=0)
    step = prepared.pipeline("finetune").step(0)
    sums = sum_by_name({n: float(x.detach()) for n, x in objective(batch).sums.items()} for batch in step)
    return len(step), sums["next_token"]


@pytest.mark.parametrize(
    "parts",
    [(), (TIMM % ", dynamic_img_size: true",), (POOL,), (SHUFFLE,), (RESAMPLER,)],
    ids=["own", "timm", "average_pool", "pixel_shuffle", "resampler"],
)
def test_packed_samples_have_the_losses_of_each_alone(recipe, parts):
    (one, packed), (each, alone) = (losses(recipe(f"speed.tokens={room}", *parts)) for room in (8192, 40))
    assert (one, each) == (1, len(ASKED)) and packed == pytest.approx(alone, rel=1e-5) and packed > 0


def test_an_image_of_the_encoder_s_size_has_the_loss_of_one_that_is_stretched(recipe, folder):
    """Records with the one image that has the size of the encoder."""
    write(folder / "square.json", [[6], [6], [6], [6], [6]])
    square = f"data.questions.records={folder / 'square.json'}"
    native, stretched = losses(recipe(square)), losses(recipe(square, fit="stretch"))
    assert native[1] == pytest.approx(stretched[1], rel=1e-5)


@pytest.mark.parametrize("connector", [POOL, SHUFFLE, RESAMPLER])
def test_so_has_one_whose_rows_a_connector_makes_of_several_patches(recipe, folder, connector):
    write(folder / "square.json", [[6], [6], [6], [6], [6]])
    square = f"data.questions.records={folder / 'square.json'}"
    native, stretched = losses(recipe(square, connector)), losses(recipe(square, connector, fit="stretch"))
    assert native[1] == pytest.approx(stretched[1], rel=1e-5)


@pytest.mark.parametrize(("connector", "rows"), [(POOL, {1, 2, 3}), (SHUFFLE, {1, 2, 3}), (RESAMPLER, {5})])
def test_a_connector_makes_rows_of_several_patches_of_each_image(recipe, folder, tmp_path, connector, rows):
    """Trains, evaluates and answers with it, and draws the attention on the patches of each image."""
    task = "stages.finetune.losses={next_token: 1.0, image_order: 1.0, guided_loss: 0.1}"
    plugins = ORDER.replace("plugins={", "plugins={guided_loss: {}, ") % 3
    read = recipe("output.save_every=0", "output.images_every=1", plugins, task, connector)
    prepared = prepare(read)
    most = "at most 5 rows" if connector == RESAMPLER else "at most 3 rows"
    assert f"  images of questions  native, at most 30 patches, {most}" in plan_text(prepared)
    views = prepared.views("finetune")
    counted = {
        views.rows_of_sample(sample)(image): sample
        for sample in prepared.sources["questions"] for image in sample.images
    }  # fmt: skip
    assert counted.keys() == rows
    batch = prepared.pipeline("finetune").step(0)[0]
    total_rows = sum(len(scatter.row_N) for scatter in batch.scatters if scatter.source == "native")
    assert total_rows < sum(batch.patches.lengths) or connector == RESAMPLER
    run = train(read, out=tmp_path / "run").run
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in run.read_metrics())
    ours = lmmkit.load(run.path, device="cpu")
    assert isinstance(ours.reply("what <image> this", [str(folder / "5.png")], max_new_tokens=4), str)
    assert "answers" in command("eval", run.path)


def test_native_images_are_packed_beside_images_of_one_size(recipe, folder):
    """Mixes both sources in one micro-batch: the pixels of each image are those of its file."""
    source = f"{{kind: llava, records: {folder / 'records.json'}, images: {folder}, template: vicuna_v1, image_fit: pad}}"
    prepared = prepare(recipe(f"data.more={source}", "stages.finetune.data={questions: 1, more: 1}"))
    pipeline = prepared.pipeline("finetune")
    batch = next(
        b for i in range(9) for b in pipeline.step(i) if b.patches is not None and len(b.pixels_ICXY)
    )
    assert {scatter.source for scatter in batch.scatters} == {"vision", "native"}
    rows = {scatter.source: len(scatter.row_N) for scatter in batch.scatters}
    assert rows["native"] >= sum(batch.patches.lengths) and all(n <= 30 for n in batch.patches.lengths)
    spec, records = prepared.dims.image, prepared.sources["questions"]
    own = {
        normalise(read_image(image, spec, records.image_fit), spec).numpy().tobytes(): image
        for sample in records for image in sample.images
    }  # fmt: skip
    for i, (lines, columns) in enumerate(batch.patches.grids):
        pixels = batch.patches.pixels(i)
        assert pixels.shape[1:] == (8 * lines, 8 * columns) and lines % 3 == columns % 3 == 0
        assert pixels.numpy().tobytes() in own
    for view, (_, key) in enumerate(batch.views):
        number = batch.first_image_V[view]
        if number >= len(batch.pixels_ICXY):
            first = records[int(key.rpartition("r")[2])].images[0]
            assert own[batch.first_image(view).numpy().tobytes()].path == first.path
    alone = replace(batch, patches=None, pixels_ICXY=batch.pixels_ICXY)
    assert Load.of([[batch]], 0).images > Load.of([[alone]], 0).images


def test_a_run_trains_answers_and_is_evaluated(recipe, folder, tmp_path):
    task = "stages.finetune.losses={next_token: 1.0, image_order: 1.0}"
    drawn = ("output.save_every=0", "output.images_every=1", ORDER % 3, task)
    run = train(recipe(*drawn), out=tmp_path / "run").run
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in run.read_metrics())
    ours = lmmkit.load(run.path, device="cpu")
    assert isinstance(ours.prepared.recipe.model.chat.image_fit, Native)
    shown = [str(folder / f"{i}.png") for i in (5, 3)]
    assert isinstance(ours.reply("what <image> is <image> this", shown, max_new_tokens=4), str)
    with pytest.raises(UserError, match="plan/tiles"):
        ours.logits(torch.tensor([[1, 2]]))
    for kind in ("llava-hf", "llava-next", "llava"):
        with pytest.raises(UserError, match="keep their shape"):
            export_model(run.path, tmp_path / kind, kind)
    export_model(run.path, tmp_path / "lmmkit", "lmmkit")
    require_equal(tmp_path / "lmmkit", verify_export(run.path, tmp_path / "lmmkit", "lmmkit"))
    assert "answers" in command("eval", run.path)


@pytest.mark.parametrize(
    ("fit", "chat"),
    [
        (FIT, "pad"),
        (FIT, "{kind: anyres, max_tiles: 2}"),
        ("pad", FIT),
        ("{kind: anyres, max_tiles: 2}", "{kind: anyres, max_tiles: 2}"),
    ],
)
def test_attention_to_an_image_is_drawn_by_the_fit_of_its_source(recipe, fit, chat):
    """Draws it in a model whose chat may treat images otherwise."""
    prepared = prepare(recipe(f"data.questions.image_fit={fit}", f"model.chat.image_fit={chat}"))
    objective = build.build_objective(prepared.recipe, {}, prepared.dims, torch.device("cpu"))
    build.set_stage(objective, prepared.plans["finetune"], prepared.recipe.stages["finetune"], seed=0)
    drawn = stage_images(prepared, objective, Position("finetune", 1, 1), torch.device("cpu")).images
    assert drawn["attention/image"].shape == drawn["attention/response_to_image"].shape


@pytest.mark.parametrize(
    ("backend", "vision"),
    [(Flash(), ()), (Sdpa(), ()), (Eager(), ()), (Flash(), (HEADS_OF_8,))],
    ids=["flash", "sdpa", "eager", "timm"],
)
def test_on_a_card_no_image_of_any_size_waits_for_the_device(recipe, backend, vision):
    """Runs the encoder alone, then the model with its gradients, on images of both kinds."""
    source = "{kind: llava, records: finetune.json, images: ., template: vicuna_v1, image_fit: pad}"
    prepared = prepare(recipe(f"data.more={source}", "stages.finetune.data={questions: 1, more: 1}", *vision))
    made = build.build_objective(prepared.recipe, {}, prepared.dims, torch.device("cpu"))
    lmm, batch = made.lmm, prepared.pipeline("finetune").step(0)[0]
    assert batch.patches is not None and len(set(batch.patches.grids)) > 1 and len(batch.pixels_ICXY)
    made.compute = torch.bfloat16
    lmm.backend = lmm.vision.backend = backend
    with on_card(made) as rules, made.computing(torch.device("cuda")):
        moved = batch.to("cuda")
        width, blocks = lmm.vision.image.width, getattr(lmm.vision, "model", lmm.vision).blocks
        assert lmm.encode(moved).native_RD.shape == (len(batch.patches.patch_RF), width)
        if backend == Flash():
            assert rules.called == ["_flash_attention_forward"] * len(blocks)
        assert bool(rules.called) == (backend != Eager())
        loss = total(made(moved).sums, {"next_token": 1.0}, batch.count)
        found = gradients(loss, list(made.parameters()), torch.ones_like(loss))
    assert rules.waited == []
    assert [each.shape for each in found] == [p.shape for p in made.parameters()]


def test_rows_are_shown_and_estimated(recipe, folder, scenes, tmp_path):
    prepared, few = (
        prepare(recipe()),
        prepare(recipe("data.questions.image_fit={kind: native, max_patches: 9}")),
    )
    rows, fewer = (estimate(p, "finetune", flops=1e12)["tokens_per_step"] for p in (prepared, few))
    sample = prepared.sources["questions"][2]
    counted = [prepared.views("finetune").rows_of_sample(sample)(image) for image in sample.images]
    assert max(counted) <= 30 and len(set(counted)) > 1 and rows > fewer
    assert "  images of questions  native, at most 30 patches, at most 27 rows" in plan_text(prepared)
    path = tmp_path / "mine.yaml"
    path.write_text(dump(recipe()))
    text = command("data", "show", path, "questions", "--root", scenes, "--count", 5)
    for image, n in zip(sample.images, counted, strict=True):
        height, width = image_size(image)
        assert f"{width} x {height} pixels as" in text and f"patches, {n} rows" in text
    page = tmp_path / "samples.html"
    command("data", "show", path, "questions", "--root", scenes, "--count", 5, "--html", page)
    assert page.read_text().count("data:image/webp") >= len({name for images in ASKED for name in images})


def test_the_plan_names_an_encoder_with_a_pass_for_each_size(recipe):
    """Its attention is no trial of the backends, which get the heads of one that packs images."""
    cpu, packed, eva = (
        torch.device("cpu"),
        HEADS_OF_8,
        HEADS_OF_8.replace("vit_tiny_patch16", "eva02_tiny_patch14"),
    )
    line = "  encoder  a pass for each size of images: Eva is no plain ViT of timm\n"
    for vision, heads, apart in ((packed, Heads(3, 3, 8), False), (eva, None, True)):
        prepared = prepare(recipe(vision))
        assert plan_text(prepared).count(line) == apart, "in the last stage alone"
        found = build.conditions(prepared.recipe, cpu)
        assert found.encoder == heads and found.packed_images
    assert line not in plan_text(prepare(recipe(eva, fit="pad")))
    assert build.conditions(prepare(recipe(packed, fit="pad")).recipe, cpu).encoder is None


def test_the_order_task_works_on_each_grid_that_divides(recipe):
    task = "stages.finetune.losses={next_token: 1.0, image_order: 1.0}"
    prepared = prepare(recipe(ORDER % 3, task))
    batch = prepared.pipeline("finetune").step(0)[0]
    assert len(batch.views_of("image_order")) == sum(1 for images in ASKED if images)
    assert not plugin_problems(prepared)
    with pytest.raises(UserError) as error:
        prepare(recipe(ORDER % 3, task, fit="{kind: native, max_patches: 30, multiple: 2}"))
    (problem,) = error.value.problems
    assert problem.code == "plan/setting" and "multiple: 2" in problem.got
    square = "data.questions.image_fit=pad"  # native images are only in the evaluation, which makes the task's views
    task_of_terms = "evaluate.tasks={own: {kind: terms, data: heldout}}"
    with pytest.raises(UserError, match="multiple: 2"):
        prepare(
            recipe(ORDER % 3, task, square, task_of_terms, fit="{kind: native, max_patches: 30, multiple: 2}")
        )


@pytest.mark.parametrize("task", ["rotation", "points"])
def test_edits_that_need_square_images_are_found_before_a_run(recipe, task):
    changes = (
        f"plugins={{{task}: {{share: 1.0}}}}",
        f"stages.finetune.losses={{next_token: 1.0, {task}: 1.0}}",
    )
    found = plugin_problems(prepare(recipe(*changes)))
    assert [(p.code, p.where.partition(",")[0]) for p in found] == [
        ("plugin/returned", f"{task}.edit of an image")
    ]
    assert not plugin_problems(prepare(recipe(*changes, fit="{kind: native, max_patches: 9, multiple: 3}")))


def test_boxes_need_a_row_for_each_patch_of_a_common_grid(recipe, folder):
    rows = json.loads((folder / "records.json").read_text())
    (folder / "boxes.json").write_text(json.dumps([row | {"box": [0.1, 0.2, 0.6, 0.9]} for row in rows]))
    changes = (
        f"data.questions.records={folder / 'boxes.json'}", "plugins={attention_box: {}}",
        "stages.finetune.losses={next_token: 1.0, attention_box: 0.1}",
    )  # fmt: skip
    for fit in (FIT, "{kind: anyres, max_tiles: 4}"):
        (problem,) = plugin_problems(prepare(recipe(*changes, fit=fit)))
        assert problem.code == "plugin/raised" and "unlike rows" in problem.got
    assert not plugin_problems(prepare(recipe(*changes, fit="pad")))


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (["data.questions.image_fit.max_patches=410"], "recipe/conflict", "405 rows of 410 patches"),
        ([TIMM % ""], "recipe/conflict", "one size"),
        (["model.vision.width=30", "model.vision.heads=2"], "plan/tiles", "heads of 15"),
    ],
)
def test_what_needs_images_of_one_size_is_refused(recipe, overrides, code, words):
    with pytest.raises(UserError) as error:
        prepare(recipe(*overrides))
    assert [(p.code, words in p.got) for p in error.value.problems] == [(code, True)]


def test_a_recipe_with_impossible_sizes_is_refused(recipe):
    with pytest.raises(UserError) as error:
        recipe(fit="{kind: native, max_patches: 8, multiple: 3}")
    assert {p.code for p in error.value.problems} == {"recipe/conflict"}
    assert json.dumps([p.expected for p in error.value.problems]).count("at least 9") == 3
