"""llava-next folders: opened with their tiles, and equal to transformers on images of many shapes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image as Pil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

import lmmkit
from lmmkit.api.sample import Image, Sample, Turn, View
from lmmkit.data.packing import LaidOut, read_images
from lmmkit.data.text_tokenizers.choose import open_tokenizer
from lmmkit.errors import UserError
from lmmkit.import_export import export_model, import_model
from tests.support import chat_folders, hf_model_folders
from tests.support.plain_twins import show

SIDE = hf_model_folders.CLIP["image_size"]
GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
PINPOINTS = [[lines * SIDE, columns * SIDE] for lines, columns in GRIDS]
SIZES = [(40, 55), (30, 30), (90, 31), (20, 100), (1, 1), (64, 47), (3, 8), (120, 130)]  # (height, width)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Writes a LLaVA-NeXT with random weights, its newline too, and a tokenizer."""
    folder = chat_folders.write_tokenizer(tmp_path_factory.mktemp("next"), "pieces")
    size = open_tokenizer(folder).size
    config = hf.LlavaNextConfig(
        vision_config=hf_model_folders.VISIONS["clip"],
        text_config=hf_model_folders.DECODERS["llama"](**chat_folders.SHAPE | {"vocab_size": size + 3}),
        image_token_index=size, vision_feature_layer=-2, image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    return hf_model_folders.saved(hf_model_folders.made(hf.LlavaNextForConditionalGeneration(config)), folder)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    there = tmp_path_factory.mktemp("images")
    for i, size in enumerate(SIZES):
        noise = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        Pil.fromarray(noise).save(there / f"{i}.png")
    return [str(there / f"{i}.png") for i in range(len(SIZES))]


def packed(ours, groups):
    """Returns the batch of one question about each group of images, and the rows of every prompt."""
    chat = ours.prepared.recipe.model.chat
    samples = [
        Sample(
            key=str(i), template=chat.template, image_fit=chat.image_fit, images=tuple(map(Image, group)),
            turns=(Turn("user", "a mat and a cat", images=len(group)),),
        )
        for i, group in enumerate(groups)
    ]  # fmt: skip
    members = [LaidOut(view, ours.views.prompt(view)) for view in (View(sample=s) for s in samples)]
    sized = [ours.packer.sized([member]) for member in members]
    batch, paths = ours.packer.pack(sized, read_images(sized, ours.reader))
    return batch, paths, members


@pytest.fixture(scope="module")
def both(folder, paths):
    """Returns our logits and transformers' at every row: of each image alone, and of several in one prompt."""
    ours, theirs = (
        lmmkit.load(folder, device="cpu"),
        hf.LlavaNextForConditionalGeneration.from_pretrained(folder),
    )
    groups = [[path] for path in paths] + [paths[:3], [paths[5], paths[3]]]
    batch, rows, members = packed(ours, groups)
    lmm = ours.objective.lmm
    with torch.no_grad():
        projected = lmm.project(lmm.encode(batch.pixels_ICXY))
        x_TD = lmm.rows(batch, projected, ours.objective.tokens(batch))
        out = lmm.decode(
            x_TD, batch.forest.pos_T, lmm.attention_fns(batch.attention, batch.attention, x_TD.device)
        )
        logits_TV = lmm.logits(out.hidden_WD)
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=PINPOINTS,
    )
    found = []
    for group, member, path in zip(groups, members, rows, strict=True):
        ids = [i for span in member.layout for i in (span.ids or [theirs.config.image_token_id] * span.n)]
        inputs = processor([Pil.open(p) for p in group], return_tensors="pt")
        with torch.no_grad():
            want = theirs.eval()(input_ids=torch.tensor([ids]), **inputs).logits[0]
        own = logits_TV[torch.from_numpy(np.ascontiguousarray(path))]
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


@pytest.mark.parametrize("pinpoints", [[[31, 60]], [], [[30]], "x", [[0, 30]]])
def test_sizes_that_are_no_whole_tiles_are_refused(folder, tmp_path, pinpoints):
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_grid_pinpoints": pinpoints}))
    with pytest.raises(UserError, match="image_grid_pinpoints"):
        lmmkit.load(tmp_path, device="cpu")


def test_an_imported_folder_answers_alike_and_is_not_exported_without_its_tiles(folder, paths, tmp_path):
    import_model(folder, tmp_path / "ours")
    public, ours = lmmkit.load(folder, device="cpu"), lmmkit.load(tmp_path / "ours", device="cpu")
    assert ours.prepared.recipe.model.chat.image_fit == public.prepared.recipe.model.chat.image_fit
    for group in (paths[:1], paths[2:4]):
        want = public.reply("5 cats", group, max_new_tokens=6)
        assert ours.reply("5 cats", group, max_new_tokens=6) == want
    for kind in ("llava-hf", "llava"):
        with pytest.raises(UserError, match="cut into tiles"):
            export_model(tmp_path / "ours", tmp_path / kind, kind)
    with pytest.raises(UserError) as error:
        ours.logits(torch.tensor([[1, 2]]))
    assert [p.code for p in error.value.problems] == ["plan/tiles"]


def test_answers_are_those_of_transformers(folder, paths):
    ours = lmmkit.load(folder, device="cpu")
    theirs = hf.LlavaNextForConditionalGeneration.from_pretrained(folder).eval()
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=PINPOINTS,
    )
    for group in (paths[:1], [paths[2], paths[3]]):
        _, _, (member,) = packed(ours, [group])
        ids = [i for span in member.layout for i in (span.ids or [theirs.config.image_token_id] * span.n)]
        inputs = processor([Pil.open(p) for p in group], return_tensors="pt")
        new = theirs.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            max_new_tokens=8, do_sample=False, **inputs,
        )[0, len(ids) :].tolist()  # fmt: skip
        ends = {ours.prepared.tokenizer.eos}
        new = new[: next((i for i, token in enumerate(new) if token in ends), len(new))]
        want = ours.prepared.tokenizer.decode(new).strip()
        assert ours.reply("a mat and a cat", group, max_new_tokens=8) == want
