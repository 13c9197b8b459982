"""llava-next folders: opened with their tiles, and equal to transformers on images of many shapes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image as Pil
from safetensors.torch import load_file, save_file
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

import lmmkit
from lmmkit.api.sample import Image, Sample, Turn, View
from lmmkit.data.image_markers import read_prompt
from lmmkit.errors import UserError
from lmmkit.import_export import export_model, import_model
from lmmkit.verify_export import require_equal, verify_export
from tests.support import chat_folders, hf_model_folders
from tests.support.plain_twins import show

SIDE = hf_model_folders.CLIP["image_size"]
GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
PINPOINTS = [[lines * SIDE, columns * SIDE] for lines, columns in GRIDS]
SIZES = [(40, 55), (30, 30), (90, 31), (20, 100), (1, 1), (64, 47), (3, 8), (120, 130)]  # (height, width)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Writes a LLaVA-NeXT with random weights, its newline too, and a tokenizer."""
    return chat_folders.llava_next(tmp_path_factory.mktemp("next"), GRIDS)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    there = tmp_path_factory.mktemp("images")
    for i, size in enumerate(SIZES):
        noise = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        Pil.fromarray(noise).save(there / f"{i}.png")
    return [str(there / f"{i}.png") for i in range(len(SIZES))]


def views_of(ours, groups, question="5 cats"):
    """Returns a view for each group of images, with a question that has them between its words."""
    chat = ours.prepared.recipe.model.chat
    return [
        View(sample=Sample(
            key=str(i), template=chat.template, image_fit=chat.image_fit, images=tuple(map(Image, group)),
            turns=read_prompt([Turn("user", f"a mat{question.join([' <image> '] * len(group))}and a cat")], len(group)),
        ))
        for i, group in enumerate(groups)
    ]  # fmt: skip


def ids_of(ours, theirs, view):
    """Returns the ids of a prompt, with one for each row of an image."""
    return [
        i for span in ours.views.prompt(view) for i in (span.ids or [theirs.config.image_token_id] * span.n)
    ]


def processor():
    return LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=PINPOINTS,
    )


@pytest.fixture(scope="module")
def both(folder, paths):
    """Returns our logits and transformers' at every row: of each image alone, and of several in one prompt."""
    ours, theirs = (
        lmmkit.load(folder, device="cpu"),
        hf.LlavaNextForConditionalGeneration.from_pretrained(folder),
    )
    groups = [[path] for path in paths] + [paths[:3], [paths[5], paths[3]]]
    views = views_of(ours, groups)
    found = []
    for group, view, own in zip(groups, views, ours.prompt_logits(views), strict=True):
        inputs = processor()([Pil.open(p) for p in group], return_tensors="pt")
        with torch.no_grad():
            want = theirs.eval()(input_ids=torch.tensor([ids_of(ours, theirs, view)]), **inputs).logits[0]
        found.append((own[:, : want.shape[1]], want))
    return found


def test_logits_equal_transformers_at_every_row(both):
    worst = max(hf_model_folders.error(own, want) for own, want in both)
    show("relative error of logits", worst)
    assert worst < 1e-5
    assert len({len(own) for own, _ in both}) > 5, "images of unlike numbers of rows"


def test_the_grids_are_those_of_the_folder(folder, tmp_path):
    fit = lmmkit.load(folder, device="cpu").prepared.recipe.model.chat.image_fit
    assert (fit.grids, fit.max_tiles) == (GRIDS, None)
    assert str(fit) == "anyres 1x2, 2x1, 2x2, 3x1, 1x3"


@pytest.mark.parametrize(
    "pinpoints",
    [[[31, 60]], [], [[30]], "x", [[0, 30]], [[SIDE, -SIDE]], [[65 * SIDE, SIDE]], [[SIDE, True]], {}, [7]],
)
def test_sizes_that_are_no_whole_tiles_are_refused(folder, tmp_path, pinpoints):
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_grid_pinpoints": pinpoints}))
    with pytest.raises(UserError, match="image_grid_pinpoints"):
        lmmkit.load(tmp_path, device="cpu")


def test_a_grid_that_a_folder_names_twice_counts_once(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    twice = [*PINPOINTS, *PINPOINTS[::-1]]
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_grid_pinpoints": twice}))
    assert lmmkit.load(tmp_path, device="cpu").prepared.recipe.model.chat.image_fit.grids == GRIDS


def test_an_imported_folder_answers_alike_and_is_exported_with_its_tiles(folder, paths, tmp_path):
    import_model(folder, tmp_path / "ours")
    public, ours = lmmkit.load(folder, device="cpu"), lmmkit.load(tmp_path / "ours", device="cpu")
    assert ours.prepared.recipe.model.chat.image_fit == public.prepared.recipe.model.chat.image_fit
    for group in (paths[:1], paths[2:4]):
        want = public.reply("5 cats", group, max_new_tokens=6)
        assert ours.reply("5 cats", group, max_new_tokens=6) == want
    with pytest.raises(UserError, match="cut into tiles"):
        export_model(tmp_path / "ours", tmp_path / "hf", "llava-hf")
    export_model(tmp_path / "ours", tmp_path / "out", "llava-next")
    old, new = (load_file(each / "model.safetensors") for each in (folder, tmp_path / "out"))
    assert old.keys() == new.keys()
    assert all(torch.equal(tensor, new[name][: len(tensor)]) for name, tensor in old.items())
    with pytest.raises(UserError) as error:
        ours.logits(torch.tensor([[1, 2]]))
    assert [p.code for p in error.value.problems] == ["plan/tiles"]


def test_an_export_is_verified_and_a_lost_newline_row_or_grid_is_found(folder, tmp_path):
    import_model(folder, tmp_path / "ours")
    for kind in ("llava-next", "lmmkit"):
        export_model(tmp_path / "ours", tmp_path / kind, kind)
        found = verify_export(tmp_path / "ours", tmp_path / kind, kind)
        require_equal(tmp_path / kind, found)
        assert {"tensors", "logits", "answer to an image"} <= {each.what for each in found if each.equal}
    out = tmp_path / "llava-next"
    assert json.loads((out / "config.json").read_text())["image_grid_pinpoints"] == PINPOINTS
    state = load_file(out / "model.safetensors")
    save_file(
        {n: t + ("newline" in n) for n, t in state.items()}, out / "model.safetensors", {"format": "pt"}
    )
    images = json.loads((out / "preprocessor_config.json").read_text())
    images["image_grid_pinpoints"] = PINPOINTS[:1]
    (out / "preprocessor_config.json").write_text(json.dumps(images))
    wrong = {e.what for e in verify_export(tmp_path / "ours", out, "llava-next") if e.equal is False}
    assert {"tensors", "logits", "pixels", "answer to an image"} <= wrong


def test_a_model_without_tiles_is_no_llava_next(tmp_path):
    import_model(chat_folders.llava(tmp_path / "hf", "llama", "pieces"), tmp_path / "ours")
    with pytest.raises(UserError, match="images cut into tiles"):
        export_model(tmp_path / "ours", tmp_path / "out", "llava-next")


def test_answers_are_those_of_transformers(folder, paths):
    ours = lmmkit.load(folder, device="cpu")
    theirs = hf.LlavaNextForConditionalGeneration.from_pretrained(folder).eval()
    for group in (paths[:1], [paths[2], paths[3]]):
        (view,) = views_of(ours, [group])
        ids = ids_of(ours, theirs, view)
        inputs = processor()([Pil.open(p) for p in group], return_tensors="pt")
        new = theirs.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            max_new_tokens=8, do_sample=False, **inputs,
        )[0, len(ids) :].tolist()  # fmt: skip
        ends = {ours.prepared.tokenizer.eos}
        new = new[: next((i for i, token in enumerate(new) if token in ends), len(new))]
        want = ours.prepared.tokenizer.decode(new).strip()
        assert ours.reply(view.sample.turns, group, max_new_tokens=8) == want
