"""Runs that compare logits with those of a teacher: what it reads, what is kept of it, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lmmkit import build
from lmmkit.attention.interface import Heads
from lmmkit.cost_estimate import estimate
from lmmkit.errors import UserError
from lmmkit.inference.load import load, open_teacher_models
from lmmkit.model.vlm import ImageFeatures
from lmmkit.plan.explain import plan_text
from lmmkit.plan.prepare import prepare
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import read
from lmmkit.training.distributed import fsdp
from lmmkit.training.distributed.process_group import ALONE
from lmmkit.training.preflight import preflight
from lmmkit.training.reference import set_teachers
from lmmkit.training.run import train
from tests.conftest import MODEL
from tests.support import local_ranks
from tests.training.test_run import figures

ZOO = Path(__file__).resolve().parents[2] / "plugins" / "lmmkit_zoo"
PLUGINS = (
    f"  distill: {{use: '{ZOO / 'distill.py'}:distill', teacher: large, divergence: js, temperature: 1.5}}\n"
)
TEXT = (
    MODEL
    + f"""
plugins:
{PLUGINS}teachers:
  large: {{from: FOLDER}}
stages:
  only:
    data:   {{questions: 1.0}}
    batch:  {{samples: 4}}
    length: {{steps: 6}}
    train:  {{vision: {{}}, connector: {{}}, text: {{}}, plugins: {{}}}}
    optim:  {{lr: 2.0e-3, clip: 1.0}}
    losses: {{next_token: 0.1, distill: 1.0}}
output: {{save_every: 3}}
speed: {{threads: 1, image_cache_mb: 8}}
"""
)
ALONE_TEXT = TEXT.replace(PLUGINS, "").replace("plugins:\nteachers:\n  large: {from: FOLDER}\n", "")
ALONE_TEXT = ALONE_TEXT.replace("0.1, distill: 1.0", "1.0")
# a wider and deeper model, whose images have another size and as many patches
LARGER = (
    "model.vision={width: 40, depth: 3, heads: 2, patch: 10, image_size: 30, feature_layer: -1}",
    "model.text={width: 48, depth: 3, heads: 4, mlp: 56, context: 256}",
    "stages.only.length.steps=2",
    "output.save_every=0",
)


def run(recipe, folder: Path, **options) -> RunFolder:
    return train(recipe, out=folder, trust_files=True, **options).run


def without_plugins(scenes, *overrides):
    from lmmkit.recipe import read_text

    return read_text(ALONE_TEXT, name="tiny.yaml", root=scenes, overrides=[*LARGER, *overrides])


@pytest.fixture(scope="module")
def teacher(scenes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    return run(without_plugins(scenes), folder).model("only")


@pytest.fixture
def recipe_of(tiny, teacher):
    return lambda *overrides: tiny(*overrides, text=TEXT.replace("FOLDER", str(teacher)))


@pytest.fixture(scope="module")
def finished(scenes, teacher, tmp_path_factory):
    from lmmkit.recipe import read_text

    recipe = read_text(TEXT.replace("FOLDER", str(teacher)), name="tiny.yaml", root=scenes)
    return recipe, run(recipe, tmp_path_factory.mktemp("run") / "whole")


def test_the_first_value_is_that_of_both_models_alone(finished, teacher):
    recipe, done = finished
    prepared = prepare(recipe, trust_files=True)
    batch, large = prepared.pipeline("only").step(0)[0], load(teacher).objective.eval()
    assert batch.teacher_pixels["large"].shape[-1] == 30 != batch.pixels_ICXY.shape[-1]
    own = load_first(prepared)
    pick, total = batch.gathers[prepared.plans["only"].needs[0]], 0.0
    assert len(pick) == batch.count["distill"] == batch.count["next_token"]
    with torch.no_grad():
        theirs = large.lmm(
            batch.reading(()), {}, ImageFeatures(large.lmm.encode_sized(batch.teacher_pixels["large"]))
        )
        ours = own.lmm(batch.reading(()), {})
        rows = [
            (made.lmm.logits(out.at(pick.row_Q)) / 1.5).softmax(-1).double()
            for made, out in ((own, ours), (large, theirs))
        ]
    for p, q in zip(*rows, strict=True):
        m = (p + q) / 2
        total += 1.5**2 * float((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
    assert done.read_metrics()[0]["terms/distill"] == pytest.approx(total / len(pick), rel=1e-4)


def load_first(prepared):
    """Returns the model that the run begins with."""
    from lmmkit import build

    components, dims = prepared.instances.components, prepared.dims
    return build.build_objective(prepared.recipe, components, dims, torch.device("cpu")).eval()


def test_a_teacher_is_learned_from_and_in_nothing_that_is_kept(finished):
    recipe, done = finished
    values = [line["terms/distill"] for line in done.read_metrics()]
    assert len(values) == 6 and values[-1] < 0.9 * values[0]
    saved = read.newest(done).path
    assert saved is not None
    kept = {*read.load(saved).tensors, *load_file(done.model("only") / "model.safetensors")}
    assert kept and not [name for name in kept if "teacher" in name or "large" in name]
    text = done.plan.read_text()
    assert "a whole model" in text and "logits and those of teacher large, in chunks, before" in text
    assert "large" in json.loads(done.run_json.read_text())["teachers"]
    assert "a whole model" in plan_text(prepare(recipe, trust_files=True))


def test_micro_batches_change_nothing(finished, recipe_of, tmp_path):
    several = run(recipe_of("speed.tokens=150", "output.save_every=0"), tmp_path / "several")
    for mine, theirs in zip(figures(several), figures(finished[1]), strict=True):
        for key in ("loss", "terms/distill", "grad_norm"):
            assert mine[key] == pytest.approx(theirs[key], rel=2e-4, abs=2e-6)


def test_a_stopped_run_goes_on_bit_for_bit(finished, tmp_path):
    shutil.copytree(finished[1].path, tmp_path / "run")
    cut = RunFolder(tmp_path / "run")
    shutil.rmtree(cut.model("only"))
    shutil.rmtree(sorted((cut.path / "checkpoints").glob("step-*"))[-1])
    run(finished[0], cut.path, resume=True)
    assert figures(cut) == figures(finished[1])


def test_a_weight_of_0_is_the_run_without_the_plugin_bit_for_bit(scenes, recipe_of, tmp_path):
    short = ("stages.only.length.steps=2", "output.save_every=0")
    off = run(recipe_of(*short, "stages.only.losses={next_token: 1.0, distill: 0.0}"), tmp_path / "off")
    from lmmkit.recipe import read_text

    plain = run(read_text(ALONE_TEXT, name="tiny.yaml", root=scenes, overrides=short), tmp_path / "plain")
    assert figures(off) == figures(plain)


def test_matrices_of_a_teacher_in_bfloat16_are_rounded(recipe_of, teacher):
    made = {}
    for dtype in ("float32", "bfloat16"):
        prepared = prepare(recipe_of(f"teachers.large.dtype={dtype}"), trust_files=True)
        objective = load_first(prepared)
        set_teachers(prepared, "only", objective, ALONE, torch.device("cpu"))
        model = objective.teacher_models["large"]
        made[dtype] = (
            model,
            model(batch := prepared.pipeline("only").step(0)[0], batch.teacher_pixels["large"]),
        )
    (wide, exact), (narrow, near) = made.values()
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert {p.dtype for p in narrow.parameters()} == {torch.float32, torch.bfloat16}
    row_Q = exact.out.row_W
    a, b = (each.logits(row_Q)[0 : len(row_Q)] for each in (exact, near))
    assert 0 < (a - b).norm() < 0.05 * a.norm()


def test_the_attention_of_a_teacher_is_chosen_for_its_own_heads_and_type(recipe_of, monkeypatch):
    asked, backend = [], build.backend
    monkeypatch.setattr(
        build, "backend", lambda recipe, device: asked.append(recipe) or backend(recipe, device)
    )
    prepared = prepare(recipe_of("numerics.compute=bfloat16"), trust_files=True)
    assert open_teacher_models(prepared, "only", torch.device("cpu")).keys() == {"large"}
    own, of_teacher = (build.conditions(recipe, torch.device("cuda")) for recipe in (prepared.recipe, *asked))
    assert (own.dtype, of_teacher.dtype) == (torch.bfloat16, torch.float32)
    assert own.decoder != of_teacher.decoder == Heads(4, 4, 12)


def test_the_estimate_has_the_weights_of_the_teacher_and_its_pass(recipe_of):
    prepared = prepare(recipe_of(), trust_files=True)
    off = estimate(prepare(recipe_of("stages.only.losses.distill=0.0"), trust_files=True), "only", flops=1e12)
    objective = load_first(prepared)
    set_teachers(prepared, "only", objective, ALONE, torch.device("cpu"))
    parameters = list(objective.teacher_models["large"].parameters())
    found = estimate(prepared, "only", flops=1e12)
    assert "teachers" not in off["bytes"]
    assert found["bytes"]["teachers"] == sum(p.nbytes for p in parameters)
    assert found["bytes"]["all"] == off["bytes"]["all"] + found["bytes"]["teachers"]
    further = 2 * sum(p.numel() for p in parameters) * found["tokens_per_step"] * found["steps"] / 1e12 / 3600
    assert found["hours"] == pytest.approx(off["hours"] + further, rel=1e-9)
    narrow = prepare(recipe_of("teachers.large.dtype=bfloat16"), trust_files=True)
    assert 2 * estimate(narrow, "only", flops=1e12)["bytes"]["teachers"] == found["bytes"]["teachers"]


def test_a_model_of_a_run_measures_the_term_and_answers_without_the_teacher(finished, tmp_path):
    model = load(finished[1].path, plugins="all", trust_files=True)
    assert list(model.objective.teacher_models) == ["large"] and not model.objective.teachers
    batch = prepare(finished[0], trust_files=True).pipeline("only").step(0)[0]
    with torch.no_grad():
        value = float(model.objective(batch).sums["distill"]) / batch.count["distill"]
    assert 0 < value < finished[1].read_metrics()[0]["terms/distill"]
    copied = shutil.copytree(finished[1].path, tmp_path / "copied")
    assert not load(copied).objective.teacher_models


def problems_of(recipe) -> list[tuple[str, str, str]]:
    with pytest.raises(UserError) as error:
        preflight(recipe, trust_files=True)
    return [(p.code, p.where, p.got) for p in error.value.problems]


def test_a_teacher_of_another_tokenizer_or_vocabulary_is_refused(scenes, recipe_of, teacher, tmp_path):
    other = shutil.copytree(teacher, tmp_path / "tokenizer")
    for path in other.glob("tokenizer.model"):
        path.write_bytes(path.read_bytes().replace(b"colo", b"cola"))
    found = problems_of(recipe_of(f"teachers.large.from={other}"))
    assert any(code == "plan/teacher-model" and "another tokenizer" in got for code, _, got in found), found
    rows = load_file(teacher / "model.safetensors")["lmm.decoder.embed.weight"].shape[0]
    padded = run(without_plugins(scenes, f"model.text.vocab={rows + 24}"), tmp_path / "padded").model("only")
    ((code, where, got),) = problems_of(recipe_of(f"teachers.large.from={padded}"))
    assert code == "plan/teacher-model" and where.endswith("teachers.large")
    assert f"a head of {rows + 24} rows, and one of {rows}" in got


def test_a_teacher_with_other_rows_for_an_image_is_refused(recipe_of, tmp_path, scenes):
    small = run(without_plugins(scenes, "model.vision.image_size=40"), tmp_path / "small").model("only")
    ((code, _, got),) = problems_of(recipe_of(f"teachers.large.from={small}"))
    assert code == "plan/teacher-model" and "16 rows for an image, and 9" in got
    ((code, _, got),) = problems_of(recipe_of("teachers.large.mean=[0, 0, 0]"))
    assert code == "plan/teacher-model" and "`mean`, and a model that reads images in its own way" in got


def test_learned_tokens_of_the_model_or_of_its_teacher_are_refused(recipe_of, tmp_path, scenes):
    spare = (
        f"plugins.spare={{use: '{ZOO / 'registers.py'}:registers', count: 2}}",
        "stages.only.tokens=[spare]",
    )
    ((code, _, got),) = problems_of(recipe_of(*spare))
    assert code == "plan/teacher-model" and "learned tokens of stage `only` (spare)" in got
    theirs = run(without_plugins(scenes, *spare), tmp_path / "spare").model("only")
    ((code, _, got),) = problems_of(recipe_of(f"teachers.large.from={theirs}"))
    assert code == "plan/teacher-model" and "learned tokens (spare), which no row has" in got


def test_a_teacher_that_is_not_there_or_not_read_is_refused(recipe_of):
    found = {code: got for code, _, got in problems_of(recipe_of("plugins.distill.teacher=larger"))}
    assert "`distill` reads teacher `larger`" in found["plan/teacher"] and "plan/unused-teacher" in found


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True])
def test_two_ranks_are_one(recipe_of, tmp_path, large):
    """Three samples a step in micro-batches of one: a rank runs an empty one, and a sharded teacher with it."""
    recipe = recipe_of("output.save_every=0", "stages.only.batch.samples=3", "speed.tokens=60")

    def body(rank):
        if large:
            fsdp.LARGE = 1
        run(recipe, tmp_path / "two" / "run")

    local_ranks.run(2, body, tmp_path / "two")
    one = run(recipe, tmp_path / "one")
    for mine, theirs in zip(figures(RunFolder(tmp_path / "two" / "run")), figures(one), strict=True):
        for key in ("loss", "terms/distill", "terms/next_token", "grad_norm"):
            assert mine[key] == pytest.approx(theirs[key], rel=2e-4, abs=2e-6), (mine["step"], key)
    ours, theirs = (
        load_file(r.model("only") / "model.safetensors") for r in (RunFolder(tmp_path / "two" / "run"), one)
    )
    for name, tensor in theirs.items():
        if not name.endswith("qkv.bias"):  # that of keys has no gradient but rounding, which Adam makes large
            assert (ours[name] - tensor).norm() <= 1e-3 * tensor.norm(), name
