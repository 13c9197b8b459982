"""Runs with teachers: what they read, what is kept of them, when they are opened, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from lmmkit import build
from lmmkit.cost_estimate import estimate
from lmmkit.data.step_transfer import from_block, to_block
from lmmkit.errors import UserError
from lmmkit.inference.load import load
from lmmkit.plan.explain import plan_text
from lmmkit.plan.prepare import prepare
from lmmkit.plugin_costs import plugin_costs
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import read
from lmmkit.training.distributed import fsdp
from lmmkit.training.preflight import preflight
from lmmkit.training.run import train
from tests.conftest import MODEL
from tests.support import hf_model_folders, local_ranks
from tests.training.test_run import figures

PLUGIN = """
from dataclasses import dataclass
import torch
from torch import nn
from lmmkit.api import HiddenAt, Loss, Select, TeacherAt, hookimpl

IMAGES = Select(kind="image")

@dataclass(frozen=True, kw_only=True)
class Follow(Loss):
    teacher: str
    fit: str = "resize"
    @property
    def needs(self):
        return HiddenAt(IMAGES, layer=1), TeacherAt(self.teacher, IMAGES, self.fit)
    def modules(self, dims):
        return nn.Linear(dims.width, dims.teachers[self.teacher].width)
    def count(self, batch):
        return batch.value_count(self.needs[0])
    def value(self, ctx):
        states, features = (ctx[need] for need in self.needs)
        return (1 - torch.cosine_similarity(ctx.module(states.float()), features)).sum()

@hookimpl
def lmmkit_components():
    return {"follow": Follow}
"""
TEXT = (
    MODEL
    + """
plugins:
  follow: {use: 'FILE', teacher: dino}
teachers:
  dino: {from: FOLDER, feature_layer: -1}
stages:
  only:
    data:   {questions: 1.0}
    batch:  {samples: 4}
    length: {steps: 6}
    train:  {vision: {}, connector: {}, text: {}, plugins: {lr: 2.0e-2}}
    optim:  {lr: 2.0e-3, clip: 1.0, weight_decay: 0.1}
    losses: {next_token: 1.0, follow: 1.0}
output: {save_every: 3}
speed: {threads: 1, image_cache_mb: 8}
"""
)


def encoder(folder: Path, **changes) -> Path:
    """Writes a CLIP encoder with random weights."""
    config = hf.CLIPVisionConfig(**hf_model_folders.CLIP | changes)
    return hf_model_folders.saved(hf_model_folders.made(hf.CLIPVisionModel(config)), folder)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Returns the recipe's text, and the folder of its teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    (folder / "follow.py").write_text(PLUGIN)
    dino = encoder(folder / "dino", image_size=60)
    return TEXT.replace("FILE", f"{folder / 'follow.py'}:follow").replace("FOLDER", str(dino)), dino


@pytest.fixture
def recipe_of(tiny, parts):
    return lambda *overrides: tiny(*overrides, text=parts[0])


@pytest.fixture(scope="module")
def finished(scenes, parts, tmp_path_factory):
    from lmmkit.recipe import read_text

    recipe = read_text(parts[0], name="tiny.yaml", root=scenes)
    return recipe, run(recipe, tmp_path_factory.mktemp("run") / "whole")


def run(recipe, folder: Path, **options) -> RunFolder:
    return train(recipe, out=folder, trust_files=True, **options).run


def problems(recipe) -> dict[str, str]:
    with pytest.raises(UserError) as error:
        preflight(recipe, trust_files=True)
    return {problem.code: str(problem) for problem in error.value.problems}


def test_a_teacher_is_learned_from_and_in_nothing_that_is_kept(finished):
    recipe, done = finished
    values = [line["terms/follow"] for line in done.read_metrics()]
    assert len(values) == 6 and values[-1] < 0.9 * values[0]
    saved = read.newest(done).path
    assert saved is not None
    kept = {*read.load(saved).tensors, *load_file(done.model("only") / "model.safetensors")}
    assert any("plugins.follow.weight" in name for name in kept)
    assert not [name for name in kept if "teacher" in name or "dino" in name]
    assert {name.split(".")[0] for name in load_file(done.model("only") / "model.safetensors")} == {
        "lmm",
        "plugins",
    }
    assert (
        "teacher dino:" in done.plan.read_text()
        and "6 x 6 patches of 60 px images, fitted to 3 x 3" in done.plan.read_text()
    )
    assert "dino" in json.loads(done.run_json.read_text())["teachers"]


def test_the_features_are_those_of_transformers(finished, parts):
    prepared = prepare(finished[0], trust_files=True)
    (dino,) = build.open_teachers(prepared, "only", torch.device("cpu")).values()
    pixels_ICXY = prepared.pipeline("only").step(0)[0].teacher_pixels["dino"]
    theirs = hf.CLIPVisionModel.from_pretrained(parts[1]).eval()
    with torch.no_grad():
        want = theirs(pixel_values=pixels_ICXY, output_hidden_states=True).hidden_states[-1][:, 1:]
    assert len(pixels_ICXY) and pixels_ICXY.shape[-1] == 60
    assert hf_model_folders.error(dino(pixels_ICXY, (6, 6)), want) < 1e-5
    means = want.unflatten(1, (3, 2, 3, 2)).mean((2, 4)).flatten(1, 2)
    assert hf_model_folders.error(dino(pixels_ICXY, (3, 3)), means) < 1e-5


def test_a_data_worker_sends_the_same_pixels(finished):
    pipeline = prepare(finished[0], trust_files=True).pipeline("only")
    sent = from_block(to_block(pickle.loads(pickle.dumps(pipeline)).step(1)))
    for mine, theirs in zip(sent, pipeline.step(1), strict=True):
        assert torch.equal(mine.teacher_pixels["dino"], theirs.teacher_pixels["dino"])
        for need, gather in theirs.gathers.items():
            assert (gather.item_Q is None) == (mine.gathers[need].item_Q is None)
            assert gather.item_Q is None or torch.equal(mine.gathers[need].item_Q, gather.item_Q)


def test_a_stopped_run_goes_on_bit_for_bit(finished, tmp_path):
    shutil.copytree(finished[1].path, tmp_path / "run")
    cut = RunFolder(tmp_path / "run")
    shutil.rmtree(cut.model("only"))
    shutil.rmtree(sorted((cut.path / "checkpoints").glob("step-*"))[-1])
    run(finished[0], cut.path, resume=True)
    assert figures(cut) == figures(finished[1])
    ours, theirs = (load_file(r.model("only") / "model.safetensors") for r in (cut, finished[1]))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_resume_refuses_another_teacher(finished, parts, recipe_of, tmp_path):
    other = shutil.copytree(parts[1], tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1e-6}, other / "model.safetensors", metadata={"format": "pt"})
    for changes in (
        [f"teachers.dino.from={other}"],
        ["teachers.dino.feature_layer=-2"],
        ["teachers.dino.mean=[0, 0, 0]"],
    ):
        with pytest.raises(UserError) as error:
            run(recipe_of(*changes), finished[1].path, resume=True)
        assert {"resume/changed"} == {each.code for each in error.value.problems}
        assert any("teachers.dino" in each.where for each in error.value.problems)
    there = parts[1] / "model.safetensors"
    before = there.read_bytes()
    try:
        shutil.copy(other / "model.safetensors", there)
        with pytest.raises(UserError) as error:
            run(finished[0], finished[1].path, resume=True)
        assert [each.where for each in error.value.problems if each.where.endswith("teachers.dino")]
    finally:
        there.write_bytes(before)


def test_a_teacher_that_no_active_term_reads_is_not_opened(parts, recipe_of, tmp_path):
    bare = shutil.copytree(parts[1], tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    changes = (f"teachers.dino.from={bare}", "stages.only.length.steps=2")
    recipe = recipe_of(*changes, "stages.only.losses.follow=0.0")
    prepared, _ = preflight(recipe, trust_files=True)
    assert "off teacher dino: no active term reads it" in plan_text(prepared)
    off = run(recipe, tmp_path / "off")
    on = run(
        recipe_of(
            "stages.only.length.steps=2",
            "stages.only.losses={next_token: 1.0, follow: {weight: 0.0, watch: true}}",
        ),
        tmp_path / "on",
    )
    for mine, theirs in zip(figures(off), figures(on), strict=True):
        assert all(theirs[key] == value for key, value in mine.items() if key not in ("seconds",))
        assert "terms/follow" in theirs.keys() - mine.keys()
    with pytest.raises(UserError):
        preflight(recipe_of(*changes), trust_files=True)


def test_a_model_of_a_run_measures_the_terms_of_teachers_and_answers_without(finished, parts, tmp_path):
    model = load(finished[1].path, plugins="all", trust_files=True)
    assert list(model.objective.teachers) == ["dino"] and [t.name for t in model.objective.terms] == [
        "follow"
    ]
    copied = shutil.copytree(finished[1].path, tmp_path / "copied")
    assert not load(copied).objective.teachers


def test_what_cannot_be_is_refused(recipe_of, tmp_path, parts, capsys):
    assert "plan/unused-teacher" in problems(recipe_of(f"teachers.spare={{from: {parts[1]}}}"))
    assert "plan/teacher" in problems(recipe_of("plugins.follow.teacher=dinos"))
    assert (
        "did you mean `dino`" in problems(recipe_of("plugins.follow.teacher=dinos"))["plan/teacher"].lower()
    )
    assert "6 x 6" in problems(recipe_of("plugins.follow.fit=exact"))["plan/teacher-fit"]
    assert any("'near'" in text for text in problems(recipe_of("plugins.follow.fit=near")).values())
    same = encoder(tmp_path / "same")
    preflight(recipe_of("plugins.follow.fit=exact", f"teachers.dino.from={same}"), trust_files=True)
    config = hf.LlamaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40, vocab_size=90,
    )  # fmt: skip
    text = hf_model_folders.saved(hf.LlamaForCausalLM(config), tmp_path / "text")
    refused = problems(recipe_of(f"teachers.dino.from={text}"))
    assert "teachers.dino.from" in refused["weights/missing-part"]
    assert (
        "teachers.dino.image_size" in problems(recipe_of("teachers.dino.image_size=90"))["model/image-size"]
    )


def test_check_counts_the_teacher_and_its_passes(finished, recipe_of):
    off = prepare(recipe_of("stages.only.losses.follow=0.0"), trust_files=True)
    on, narrow = (
        prepare(recipe_of(f"teachers.dino.dtype={d}"), trust_files=True) for d in ("float32", "bfloat16")
    )
    costs = [estimate(prepared, "only", flops=1e12) for prepared in (off, on, narrow)]
    shell = build.teacher_shell(on, "dino")
    batches = [batch for i in range(4) for batch in on.pipeline("only").step(i)]
    images, values = (
        [len(b.teacher_pixels["dino"]) for b in batches],
        sum(p.numel() for p in shell.parameters()),
    )
    peak = max(images) * 36 * (12 * 24 + 3 * 4 * 40)
    assert "teachers" not in costs[0]["bytes"] and costs[1]["bytes"]["teachers"] == 4 * values + peak
    assert costs[1]["bytes"]["all"] == sum(v for k, v in costs[1]["bytes"].items() if k != "all")
    assert 2 * values < costs[2]["bytes"]["teachers"] < 0.7 * costs[1]["bytes"]["teachers"]
    seconds = 3600 * (costs[1]["hours"] - costs[0]["hours"])
    learned = 6 * 2 * costs[1]["tokens_per_step"] * (costs[1]["trainable"] - costs[0]["trainable"])
    passes = 6 * 2 * values * 36 * sum(images) / 4
    assert seconds == pytest.approx((learned + passes) / 1e12, rel=1e-6) and passes > 5 * learned
    assert float(
        build.open_teachers(narrow, "only", torch.device("cpu"))["dino"].encoder.blocks[0].up.weight.sum()
    )


def test_cost_measures_a_step_with_the_teacher(finished):
    cost = plugin_costs(prepare(finished[0], trust_files=True), "only", 2, torch.device("cpu"))
    assert [(plugin.name, plugin.why_not) for plugin in cost.plugins] == [("follow", "")]
    assert cost.plugins[0].ratio is not None and cost.plugins[0].ratio > 0


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True])
def test_two_ranks_are_one(finished, recipe_of, tmp_path, large, monkeypatch):
    recipe = recipe_of("output.save_every=0")

    def body(rank):
        if large:
            fsdp.LARGE = 1
        sharded = []
        shard = fsdp.shard
        fsdp.shard = lambda root, *args, **more: (
            sharded.append(type(root).__name__) or shard(root, *args, **more)
        )
        run(recipe, tmp_path / "two" / "run")
        assert ("Teacher" in sharded) == large

    local_ranks.run(2, body, tmp_path / "two")
    for mine, theirs in zip(figures(RunFolder(tmp_path / "two" / "run")), figures(finished[1]), strict=True):
        for key in ("loss", "terms/follow", "terms/next_token", "grad_norm"):
            assert mine[key] == pytest.approx(theirs[key], rel=2e-4, abs=2e-6), (mine["step"], key)
