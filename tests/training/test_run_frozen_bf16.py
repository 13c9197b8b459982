"""Runs whose frozen parts are held in bfloat16: which, what the folder holds, resume."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

import lmmkit
from lmmkit import build
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import manifest, read
from lmmkit.training.run import train
from tests.conftest import PLAIN
from tests.training.test_run import figures
from tests.training.test_run_pretrained import LORA, public, tensors

__all__ = ["public"]  # the fixture of a llava-hf folder

FROZEN = "numerics.frozen=bfloat16"
PROJECTOR = "stages.pretrain.train={connector: {}}"
WHOLE = "stages.finetune.train={connector: {}, text: {}}"
MATRIX = ("lmm.decoder.embed.weight", "lmm.decoder.blocks.1.mlp.down.weight", "lmm.decoder.head.weight")
ENCODER = "lmm.vision.blocks.0.qkv.weight"


@pytest.fixture(scope="module")
def lean(public, scenes, tmp_path_factory):
    """Returns a finished run: connector first, then low-rank updates, over frozen bfloat16."""
    from lmmkit.recipe import read_text

    recipe = read_text(PLAIN, name="tiny.yaml", overrides=[*public[1], PROJECTOR, LORA, FROZEN], root=scenes)
    return recipe, train(recipe, out=tmp_path_factory.mktemp("lean") / "run").run


def source(folder) -> dict[str, torch.Tensor]:
    """Returns the public folder's values by our names."""
    model = lmmkit.load(folder, device="cpu")
    return dict(model.objective.state_dict())


def test_a_folder_holds_what_was_frozen_in_bfloat16(lean, public):
    before, first, last = (
        source(public[0]),
        tensors(lean[1].path, "pretrain"),
        tensors(lean[1].path, "finetune"),
    )
    for name in (*MATRIX, ENCODER):
        assert first[name].dtype == last[name].dtype == torch.bfloat16
        assert torch.equal(first[name], before[name].bfloat16()), "rounded once, from the source"
    assert torch.equal(last[MATRIX[0]], first[MATRIX[0]]) and torch.equal(last[ENCODER], first[ENCODER])
    assert not torch.equal(last[MATRIX[1]], first[MATRIX[1]]), "low-rank updates are merged into it"
    for name in ("lmm.decoder.norm.weight", "lmm.vision.position", "lmm.connector.first.weight"):
        assert last[name].dtype == torch.float32
    assert torch.equal(first["lmm.decoder.norm.weight"], before["lmm.decoder.norm.weight"])


def test_losses_are_near_those_of_float32(lean, public, tiny, tmp_path):
    wide = train(tiny(*public[1], PROJECTOR, LORA, text=PLAIN), out=tmp_path / "wide").run
    ours, theirs = ([line["loss"] for line in run.read_metrics()] for run in (lean[1], wide))
    assert ours == pytest.approx(theirs, rel=0.02) and ours != theirs


def test_a_lean_run_resumes_bit_for_bit_and_keeps_no_slots_for_the_frozen(lean, tmp_path):
    recipe, whole = lean
    shutil.copytree(whole.path, tmp_path / "part")
    part = RunFolder(tmp_path / "part")
    shutil.rmtree(part.model("finetune"))
    shutil.rmtree(sorted((part.path / "checkpoints").iterdir())[-1])
    saved = read.newest(part).path
    held = {k: t for shard in saved.glob("shard-*.safetensors") for k, t in load_file(shard).items()}
    slots = {name for name in held if name.startswith("optim.")}
    assert slots and all(".lora." in name or "lmm.connector." in name for name in slots)
    copy = part.checkpoints / manifest.examine(saved).frozen
    frozen = {k: t for file in copy.glob("a-*") for k, t in load_file(file).items()}
    assert frozen[f"model.{MATRIX[0]}"].dtype == torch.bfloat16
    train(recipe, out=part.path, resume=True)
    assert figures(part) == figures(whole)
    ours, theirs = tensors(part.path, "finetune"), tensors(whole.path, "finetune")
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


def test_what_a_later_stage_trains_is_never_rounded(public, tiny, tmp_path):
    recipe = tiny(*public[1], PROJECTOR, WHOLE, FROZEN, text=PLAIN)
    assert build.frozen_narrow(recipe) == ("vision",)
    run = train(recipe, out=tmp_path / "run").run
    before, first, last = source(public[0]), tensors(run.path, "pretrain"), tensors(run.path, "finetune")
    for name in MATRIX:
        assert torch.equal(first[name], before[name]) and last[name].dtype == torch.float32
        assert not torch.equal(last[name], first[name])
    assert torch.equal(last[ENCODER], before[ENCODER].bfloat16())


@pytest.mark.parametrize(
    ("overrides", "narrow"),
    [
        ([PROJECTOR, LORA], ("vision", "text")),
        (["stages.pretrain.train={plugins: {}}", "stages.finetune.train={plugins: {}}"], ("vision", "connector", "text")),
        ([PROJECTOR, "stages.finetune.train={vision: {lr: 2.0e-6}, connector: {}}"], ("text",)),
        ([PROJECTOR, LORA, "model.vision={timm: vit_tiny_patch16_224, weights: none}"], ("text",)),
    ],
)  # fmt: skip
def test_only_parts_that_no_stage_trains_are_narrow(tiny, overrides, narrow):
    assert build.frozen_narrow(tiny(*overrides, FROZEN)) == narrow
    assert build.frozen_narrow(tiny(*overrides)) == ()


def test_a_part_that_is_drawn_is_drawn_wide_and_then_rounded(tiny, tmp_path):
    short = [
        PROJECTOR,
        "stages.finetune.train={connector: {}}",
        *(f"stages.{s}.length.steps=1" for s in ("pretrain", "finetune")),
    ]
    wide, lean = (
        train(tiny(*short, *extra, text=PLAIN), out=tmp_path / name).run
        for name, extra in (("wide", []), ("lean", [FROZEN]))
    )
    ours, theirs = tensors(lean.path, "pretrain"), tensors(wide.path, "pretrain")
    assert all(torch.equal(ours[name], theirs[name].bfloat16()) for name in (*MATRIX, ENCODER))
