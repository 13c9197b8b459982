"""AnyRes: grids, tiles and rows of 200 sizes against transformers, and against plain loops."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image as Pil

from lmmkit.data.fits.tiles import NEWLINE, Tiling, best_grid, cut_tiles, inside

SIDE, PATCH = 56, 14
TOKENS = (4, 4)
# lines and columns of tiles: LLaVA-NeXT's, and a longer list whose order decides between equals
GRIDS = {"next": [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]}
GRIDS["many"] = [(a, b) for a in range(1, 5) for b in range(1, 5) if a * b <= 6]
NARROW = [(1, 1), (1, 2), (2, 1), (1, 100), (100, 1), (3, 200), (199, 2), (56, 56), (112, 56), (56, 168)]


def sizes(most: int, n: int = 200) -> list[tuple[int, int]]:
    """Returns sizes (height, width) of all shapes up to `most` a side, and the narrow ones."""
    drawn = np.exp(np.random.default_rng(4).uniform(0, np.log(most), (n - len(NARROW), 2)))
    return NARROW + [(max(1, int(h)), max(1, int(w))) for h, w in drawn]


def noise(size: tuple[int, int]) -> Pil.Image:
    return Pil.fromarray(np.random.default_rng(size).integers(0, 256, (*size, 3), np.uint8))


@pytest.fixture(scope="module", params=list(GRIDS))
def grids(request):
    return GRIDS[request.param]


def processor(grids, side: int, patch: int):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlavaNextProcessor, PreTrainedTokenizerFast
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side},
        image_grid_pinpoints=[[rows * side, columns * side] for rows, columns in grids],
    )  # fmt: skip
    words = Tokenizer(WordLevel({"<image>": 0, "a": 1}, unk_token="a"))
    return LlavaNextProcessor(
        images, PreTrainedTokenizerFast(tokenizer_object=words, additional_special_tokens=["<image>"]),
        patch_size=patch, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


def test_tiles_are_those_of_transformers(grids):
    theirs = processor(grids, SIDE, PATCH).image_processor
    for size in sizes(400):
        image = noise(size)
        ours = cut_tiles(image, grids, SIDE, Pil.Resampling.BICUBIC)
        want = theirs(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
        assert np.array_equal(np.stack([np.asarray(tile) for tile in ours]).transpose(0, 3, 1, 2), want), size


@pytest.mark.parametrize(("side", "patch"), [(336, 14), (224, 16), (SIDE, PATCH)])
def test_the_number_of_rows_is_that_of_transformers(grids, side, patch):
    tokens = (side // patch, side // patch)
    every = sizes(2000)
    counts = processor(grids, side, patch)._get_num_multimodal_tokens(every)["num_image_tokens"]
    assert counts == [Tiling.of(size, grids, side, tokens).rows(tokens) for size in every]
    assert len(set(counts)) > 10


def test_the_processor_writes_as_many_image_tokens(grids):
    made = processor(grids, SIDE, PATCH)
    for size in sizes(150)[::10]:
        ids = made(text="<image> a", images=noise(size), return_tensors="pt")["input_ids"]
        assert int((ids == 0).sum()) == Tiling.of(size, grids, SIDE, TOKENS).rows(TOKENS), size


def test_rows_are_packed_as_the_model_packs_them(grids):
    """Numbers the tokens of all tiles, and reads which of them remain, in order."""
    from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

    pinpoints = [[rows * SIDE, columns * SIDE] for rows, columns in grids]
    vision = SimpleNamespace(image_size=SIDE, patch_size=PATCH)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints))
    newline = torch.tensor([float(NEWLINE)])
    for size in sizes(900):
        tiling = Tiling.of(size, grids, SIDE, TOKENS)
        numbers = torch.arange(16.0 * tiling.images).view(tiling.images, 16, 1)
        (want,), _ = LlavaNextModel.pack_image_features(model, [numbers], [list(size)], "default", newline)
        got = tiling.token_of_rows(TOKENS)
        assert got.tolist() == want[:, 0].long().tolist(), size
        assert len(got) == tiling.rows(TOKENS)


def test_the_best_grid_shows_most_of_the_image(grids):
    """Compares with exact arithmetic. LLaVA-NeXT's rounding may lose a line of pixels in each direction."""

    def shown(size, grid) -> int:
        scale = min(Fraction(grid[0] * SIDE, size[0]), Fraction(grid[1] * SIDE, size[1]))
        return min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])

    for size in sizes(900):
        found = best_grid(size, grids, SIDE)
        assert shown(size, found) >= max(shown(size, grid) for grid in grids) - 6 * SIDE - 1, size


@pytest.mark.parametrize("size", [(40, 90), (90, 40), (100, 100), (9, 11), (170, 30)])
def test_cut_and_rows_are_those_of_plain_loops(size):
    """Paints the canvas pixel by pixel, then looks which tokens show any of the image."""
    tiling = Tiling.of(size, GRIDS["next"], SIDE, TOKENS)
    image = noise(size)
    overview, *tiles = map(np.asarray, cut_tiles(image, GRIDS["next"], SIDE, Pil.Resampling.BICUBIC))
    assert np.array_equal(overview, np.asarray(image.resize((SIDE, SIDE), Pil.Resampling.BICUBIC)))
    rows, columns = tiling.grid
    height, width = inside(size, (rows * SIDE, columns * SIDE))
    small = np.asarray(image.resize((width, height), Pil.Resampling.BICUBIC))
    above, before = (rows * SIDE - height) // 2, (columns * SIDE - width) // 2
    for y in range(rows * SIDE):
        for x in range(columns * SIDE):
            within = above <= y < above + height and before <= x < before + width
            want = small[y - above, x - before] if within else [0, 0, 0]
            tile = tiles[y // SIDE * columns + x // SIDE]
            assert tile[y % SIDE, x % SIDE].tolist() == list(want), (y, x)
    seen = []
    for line in range(rows * 4):
        for column in range(columns * 4):
            top, left = line * PATCH, column * PATCH
            if (
                min(top + PATCH, above + height) - max(top, above) > PATCH / 2
                and min(left + PATCH, before + width) - max(left, before) > PATCH / 2
            ):
                tile = 1 + line // 4 * columns + column // 4
                seen.append(tile * 16 + line % 4 * 4 + column % 4)
    kept = [token for token in tiling.token_of_rows(TOKENS).tolist() if token >= 16]
    assert set(seen) <= set(kept), "nothing that shows more than half of its patch is left out"
    assert len(kept) - len(seen) <= 2 * max(rows, columns) * 4, "at most two lines more"
