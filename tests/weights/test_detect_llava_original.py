"""Original LLaVA-1.6 folders: as the llava-next folder of the same weights, there and back."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import lmmkit
from lmmkit.errors import UserError
from lmmkit.import_export import export_model, import_model
from lmmkit.recipe import read_text
from lmmkit.training.preflight import preflight
from lmmkit.verify_export import require_equal, verify_export
from lmmkit.weights import model_folder
from lmmkit.weights.detect import open_pretrained
from tests.conftest import PLAIN
from tests.data.test_images import noisy_image
from tests.support import chat_folders, hf_model_folders
from tests.support.original_llava import original
from tests.weights.test_detect_llava_next import SIDE, views_of

GRIDS = ((1, 3), (1, 2), (2, 1), (2, 2))  # a list that is another one with the sides exchanged
SIZES = [(20, 100), (90, 31), (30, 30), (64, 47)]  # (height, width)


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    return chat_folders.llava_next(tmp_path_factory.mktemp("twin") / "next", GRIDS)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Writes an encoder of the same shape with other weights, as LLaVA-1.6 began from."""
    tower = hf.CLIPVisionModel(hf_model_folders.VISIONS["clip"])
    hf_model_folders.scramble(tower, 9)
    return hf_model_folders.saved(tower, tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def ours(public, clip, tmp_path_factory):
    """Imports the weights from both folders: (from the llava-next one, from the original one)."""
    there = tmp_path_factory.mktemp("ours")
    import_model(public, there / "next")
    import_model(original(public, there / "public"), there / "original", vision=clip)
    return there / "next", there / "original"


def test_an_original_folder_is_the_same_model_as_its_llava_next_twin(ours, tmp_path):
    twin, own = (load_file(folder / "model.safetensors") for folder in ours)
    assert twin.keys() == own.keys() and all(torch.equal(twin[name], own[name]) for name in twin)
    twin, own = (lmmkit.load(folder, device="cpu") for folder in ours)
    chat = own.prepared.recipe.model.chat
    assert chat == twin.prepared.recipe.model.chat and chat.template == "vicuna_v1"
    assert chat.image_fit.grids == GRIDS
    paths = [str(tmp_path / f"{i}.png") for i in range(len(SIZES))]
    for path, (height, width) in zip(paths, SIZES, strict=True):
        noisy_image(width, height).save(path)
    views = views_of(own, [[path] for path in paths] + [paths[1:3]])
    for view, a, b in zip(views, twin.prompt_logits(views), own.prompt_logits(views), strict=True):
        assert twin.views.prompt(view) == own.views.prompt(view) and torch.equal(a, b)
    assert twin.reply("5 cats", paths[:1], max_new_tokens=6) == own.reply(
        "5 cats", paths[:1], max_new_tokens=6
    )


def test_it_is_written_as_it_was_and_read_again(ours, public, tmp_path):
    _, own = ours
    out = tmp_path / "out"
    export_model(own, out, "llava")
    require_equal(out, verify_export(own, out, "llava"))
    before = original(public, tmp_path / "public")
    old, new = (load_file(folder / "model.safetensors") for folder in (before, out))
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (before, out))
    for key in (
        "image_grid_pinpoints",
        "image_aspect_ratio",
        "mm_patch_merge_type",
        "mm_vision_select_layer",
    ):
        assert old[key] == new[key]
    assert new["model_type"] == "llava_llama" and new["image_grid_pinpoints"][0] == [3 * SIDE, SIDE]
    import_model(out, tmp_path / "again")
    a, b = (load_file(folder / "model.safetensors") for folder in (own, tmp_path / "again"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    state = load_file(out / "model.safetensors")
    state["model.image_newline"] += 1
    save_file(state, out / "model.safetensors", {"format": "pt"})
    assert {"tensors", "logits"} <= {e.what for e in verify_export(own, out, "llava") if e.equal is False}


def test_a_recipe_starts_from_it(public, clip, scenes, tmp_path):
    """Checks a recipe with connector and decoder of an original folder; without tiles it has no newline row."""
    folder = original(public, tmp_path / "public")
    parts = [f"model.vision={{from: {clip}}}", f"model.connector={{kind: mlp2x_gelu, from: {folder}}}",
             f"model.text={{from: {folder}, context: 500}}", f"model.tokenizer={{from: {folder}}}"]  # fmt: skip
    keys = "model.chat", "data.captions", "data.questions", "data.heldout", "data.heldout_captions"
    tiles = f"{{kind: anyres, grids: {[list(grid) for grid in GRIDS]}}}"
    preflight(read_text(PLAIN, overrides=parts + [f"{key}.image_fit={tiles}" for key in keys], root=scenes))
    with pytest.raises(UserError, match=r"newline.*weights/extra-tensors"):
        preflight(read_text(PLAIN, overrides=parts, root=scenes))


LACKING = "lmmkit does not have this feature"
REFUSED = [
    ({"mm_patch_merge_type": "spatial"}, r"mm_patch_merge_type.*'spatial'.*'spatial_unpad' with .*'anyres'", LACKING),
    ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type.*'flat'", LACKING),
    ({"mm_patch_merge_type": None}, "mm_patch_merge_type.*'flat'", LACKING),
    ({"image_aspect_ratio": "pad"}, r"mm_patch_merge_type.*'spatial_unpad'.*'flat' with .*'pad'", LACKING),
    ({"image_aspect_ratio": "anyres_max_9"}, "image_aspect_ratio.*anyres_max_9", LACKING),
    ({"image_grid_pinpoints": "(1x1),...,(6x6)"}, r"\(1x1\).*list of \[width, height\]", LACKING),
    ({"image_grid_pinpoints": None}, r"image_grid_pinpoints.*list of \[width, height\]", "Correct the file"),
    ({"image_grid_pinpoints": [[SIDE, 31]]}, f"image_grid_pinpoints.*multiples of {SIDE}", "Correct the file"),
    ({"mm_resampler_type": "perceiver"}, "mm_resampler_type.*perceiver", LACKING),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words", "fix"), REFUSED)
def test_what_is_not_carried_is_refused_by_name(changes, words, fix, public, clip, tmp_path):
    folder = original(public, tmp_path / "public", **changes)
    with pytest.raises(UserError, match=words) as error:
        import_model(folder, tmp_path / "ours", vision=clip)
    (problem,) = error.value.problems
    assert problem.code == "weights/config" and fix in problem.hint


def test_prompts_of_another_form_need_a_template_that_the_user_names(clip, tmp_path):
    for family, tokenizer, kind, named, form in [
        ("mistral", "pieces", "llava_mistral", "vicuna_v1", "mistral_instruct"),
        ("llama", "pieces chat", "llava", "chatml", "chatml_direct"),
    ]:
        there = tmp_path / family
        twin = chat_folders.llava_next(there / "next", GRIDS, family=family, tokenizer=tokenizer)
        folder = original(twin, there / "public", kind)
        with pytest.raises(UserError, match=rf"{form}.*--template {named}.*weights/foreign-prompt"):
            import_model(folder, there / "no", vision=clip)
        import_model(folder, there / "ours", vision=clip, template=named)
        import_model(twin, there / "twin", template=named)
        a, b = (load_file(there / name / "model.safetensors") for name in ("ours", "twin"))
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        assert model_folder.config_of(there / "ours")["model"]["chat"]["template"] == named


def test_a_projector_alone_brings_its_newline_row(public, clip, tmp_path):
    whole = original(public, tmp_path / "public")
    state = load_file(whole / "model.safetensors")
    projector = shutil.copytree(whole, tmp_path / "projector")
    kept = {name: t for name, t in state.items() if "mm_projector" in name or "newline" in name}
    save_file(kept, projector / "model.safetensors", {"format": "pt"})
    import_model(projector, tmp_path / "ours", vision=clip, base=public)
    found = load_file(tmp_path / "ours" / "model.safetensors")
    assert torch.equal(found["lmm.connector.newline.row"], state["model.image_newline"])
    del kept["model.image_newline"]
    save_file(kept, projector / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 missing: newline.*weights/missing-tensors"):
        import_model(projector, tmp_path / "no", vision=clip, base=public)
    assert (
        open_pretrained(whole).place("base_model.model.model.image_newline") == "connector.newline"
    )  # low-rank
