"""The attention of a response to its image, beside the attention maps of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lmmkit
from lmmkit.api.sample import Image, Sample, Turn, View
from lmmkit.data.micro_batch.laid_out import LaidOut
from lmmkit.data.micro_batch.packed_images import read_images
from lmmkit.inference.image_attention import answer_attention, image_attention
from lmmkit.recipe import read_text
from tests.conftest import PLAIN
from tests.support import hf_model_folders
from tests.support.fake_llama_tokenizer import write_llama_like
from tests.support.random_chat_model import random_chat_model


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    from PIL import Image as Pil

    folder = tmp_path_factory.mktemp("attention")
    theirs = hf_model_folders.llava("llama", "clip", "plain")
    theirs.config.text_config.max_position_embeddings = 400
    theirs.resize_token_embeddings(32_064)
    theirs.config.image_token_index = theirs.config.image_token_id = 32_000
    hf_model_folders.scramble(theirs, 3)
    write_llama_like(hf_model_folders.saved(theirs, folder / "hf"))
    paths = [str(folder / "wide.png"), str(folder / "tall.png")]
    for path, size in zip(paths, [(50, 41), (9, 70)], strict=True):
        Pil.effect_noise(size, 60).convert("RGB").save(path)
    return lmmkit.load(folder / "hf", device="cpu"), theirs.eval(), paths


@pytest.mark.parametrize("count", [1, 2])
def test_mass_and_maps_are_those_of_transformers(pair, count):
    ours, theirs, paths = pair
    turns = (Turn("user", "a cat", images=count), Turn("assistant", "a mat and a hat"))
    view = View(sample=Sample(key="s", turns=turns, images=tuple(map(Image, paths[:count]))))
    layout = ours.views.lay_out(view)
    sample = ours.packer.sized([LaidOut(view, layout)])
    images = read_images([sample], ours.reader)
    found = image_attention(ours.objective, ours.packer, sample, images, ours.device)

    ids = [i for span in layout for i in (span.ids or [32_000] * span.n)]
    is_image = np.repeat([s.kind == "image" for s in layout], [s.n for s in layout])
    response = np.repeat([s.supervised for s in layout], [s.n for s in layout])
    theirs.set_attn_implementation("eager")
    batch, _ = ours.packer.pack([sample], images)
    with torch.no_grad():
        out = theirs(
            input_ids=torch.tensor([ids]), pixel_values=batch.pixels_ICXY, output_attentions=True
        )  # fmt: skip
    weights = torch.stack(
        [a[0].mean(0) for a in out.attentions[-len(ours.objective.lmm.decoder.blocks) :]]
    ).mean(0)
    to_image = weights[torch.from_numpy(response)][:, torch.from_numpy(is_image)].mean(0)
    rows = np.flatnonzero(response)
    each = np.mean([is_image.sum() / count / (row + 1) for row in rows])
    for one, to_one in zip(found.images, to_image.chunk(count), strict=True):
        torch.testing.assert_close(one.map_XY.flatten(), to_one, rtol=1e-4, atol=1e-6)
        assert one.mass == pytest.approx(float(to_one.sum()), rel=1e-4) and one.even == pytest.approx(each)
        assert one.map_XY.shape == ours.packer.image.grid
    assert found.mass == pytest.approx(float(to_image.sum()), rel=1e-4) and 0 < found.mass < 1
    assert found.even == pytest.approx(count * each) and found.map_XY is found.images[0].map_XY

    first = rows[0] - 1  # the row that predicts the first token of the response
    alone = weights[first, torch.from_numpy(is_image)]
    of_first = found.deciding.map_XY.flatten()
    torch.testing.assert_close(of_first, alone[: len(of_first)], rtol=1e-4, atol=1e-6)
    assert found.deciding.mass == pytest.approx(float(alone.sum()), rel=1e-4)
    assert found.deciding.rows == first + 1
    assert found.deciding.even == pytest.approx(is_image.sum() / (first + 1))


def test_the_map_of_an_image_in_its_shape_has_each_patch_in_its_place(scenes, tmp_path):
    """Changes one patch: in one layer of one head that has the embeddings of patches, all other weights of a row change
    by one factor."""
    from PIL import Image as Pil

    sets = [
        "model.chat.image_fit={kind: native, max_patches: 24}", "model.text.context=400", "model.text.depth=1",
        "model.text.heads=1", "model.text.kv_heads=1", "model.vision.feature_layer=0",
    ]  # fmt: skip
    model = random_chat_model(read_text(PLAIN, root=scenes, overrides=sets))
    turns = (Turn("user", "a and b", images=2), Turn("assistant", "a mat and a hat"))
    grey, tall = np.full((24, 48, 3), 90, np.uint8), str(tmp_path / "tall.png")  # patches of 8 pixels
    Pil.effect_noise((8, 16), 60).convert("RGB").save(tall)

    def found(pixels: np.ndarray, name: str):
        path = str(tmp_path / f"{name}.png")
        Pil.fromarray(pixels).save(path)
        fit = model.prepared.recipe.model.chat.image_fit
        images = (Image(path), Image(tall))
        return answer_attention(model, Sample(key="s", turns=turns, images=images, image_fit=fit))

    before = found(grey, "grey")
    assert [each.map_XY.shape for each in before.images] == [(3, 6), (2, 1)]
    for each in before.images:
        assert each.mass == pytest.approx(float(each.map_XY.sum()), rel=1e-5)
    for line, column in ((0, 0), (0, 5), (2, 0), (1, 4)):
        changed = grey.copy()
        changed[8 * line : 8 * line + 8, 8 * column : 8 * column + 8] = 250
        factor_XY = found(changed, f"{line}{column}").deciding.map_XY / before.deciding.map_XY
        elsewhere = torch.ones(3, 6, dtype=torch.bool)
        elsewhere[line, column] = False
        usual = factor_XY[elsewhere].median()
        assert (factor_XY[elsewhere] / usual - 1).abs().max() < 1e-4
        assert abs(float(factor_XY[line, column] / usual) - 1) > 1e-2


@pytest.mark.parametrize(
    ("fit", "shapes"),
    [
        ("{kind: native, max_patches: 36, multiple: 3}", [(3, 6), (9, 3)]),
        ("{kind: anyres, max_tiles: 4}", [(6, 6), (6, 6)]),
    ],
)
def test_a_row_of_a_square_of_patches_gives_its_weight_to_them_evenly(scenes, tmp_path, fit, shapes):
    """Compares maps with masses; of an image that is cut into tiles the map is that of the overview."""
    from PIL import Image as Pil

    sets = [
        f"model.chat.image_fit={fit}", "model.text.context=400", "model.vision.image_size=48",
        "model.connector={kind: average_pool, factor: 3}",
    ]  # fmt: skip
    model = random_chat_model(read_text(PLAIN, root=scenes, overrides=sets))
    paths = [str(tmp_path / name) for name in ("wide.png", "tall.png")]
    for path, size in zip(paths, ((48, 24), (24, 72)), strict=True):
        Pil.effect_noise(size, 60).convert("RGB").save(path)
    turns = (Turn("user", "a and b", images=2), Turn("assistant", "a mat and a hat"))
    chat, images = model.prepared.recipe.model.chat, tuple(map(Image, paths))
    found = answer_attention(model, Sample(key="s", turns=turns, images=images, image_fit=chat.image_fit))
    assert [each.map_XY.shape for each in found.images] == shapes
    for each in (*found.images, found.deciding):
        squares = each.map_XY.unfold(0, 3, 3).unfold(1, 3, 3).flatten(2).flatten(0, 1)
        assert (squares == squares[:, :1]).all() and len(squares[:, 0].unique()) == len(squares)
    for each in found.images:
        own = pytest.approx(float(each.map_XY.sum()), rel=1e-5)
        assert each.mass == own if "native" in fit else each.mass > own.expected
