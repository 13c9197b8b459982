"""Images that are cut into tiles: their pixels, their rows from the header, and what is refused."""

import os

import numpy as np
import pytest
import torch
from PIL import Image as Pil

from lmmkit.api.model_info import ImageSpec
from lmmkit.api.sample import AnyRes, Image
from lmmkit.data.fits.rows import TiledRows
from lmmkit.data.fits.tiles import cut_tiles
from lmmkit.data.image_files.image_file import image_size
from lmmkit.data.images import Cut, ImageReader, normalise, read_image
from lmmkit.errors import UserError
from tests.data.test_images import noisy_image

SPEC = ImageSpec(size=48, grid=(4, 4), width=8)
FIT = AnyRes()


def test_pixels_are_the_overview_and_the_tiles(tmp_path):
    noisy_image(90, 60).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png", SPEC, FIT)
    tiles = cut_tiles(noisy_image(90, 60), FIT.grids, 48, Pil.Resampling.BICUBIC)
    assert (read.dtype, tuple(read.shape)) == (torch.uint8, (len(tiles), 3, 48, 48)) and len(tiles) == 5
    for one, tile in zip(read, tiles, strict=True):
        assert np.array_equal(one.permute(1, 2, 0).numpy(), np.asarray(tile))
    assert torch.equal(normalise(read, SPEC)[3], normalise(read[3].clone(), SPEC))


def test_a_bound_of_tiles_leaves_larger_grids_out(tmp_path):
    noisy_image(90, 60).save(tmp_path / "a.png")
    assert len(read_image(tmp_path / "a.png", SPEC, AnyRes(max_tiles=2))) == 3
    assert str(AnyRes(max_tiles=2)) == "anyres 1x2, 2x1"


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_is_that_of_the_upright_image(tmp_path, orientation):
    exif = Pil.Exif()
    exif[0x0112] = orientation
    noisy_image(60, 20).save(tmp_path / "a.jpg", exif=exif)
    image = Image(str(tmp_path / "a.jpg"))
    assert image_size(image) == ((60, 20) if orientation in (6, 8) else (20, 60))
    rows_of = TiledRows(FIT, SPEC)
    read = read_image(image, SPEC, FIT)
    assert rows_of.tiling(image).images == len(read)
    assert rows_of(image) == len(rows_of.tiling(image).token_of_rows(SPEC.grid))


def test_a_file_that_is_written_again_is_measured_again(tmp_path):
    image = Image(str(tmp_path / "a.png"))
    noisy_image(30, 20).save(image.path)
    assert image_size(image) == (20, 30)
    noisy_image(31, 20).save(image.path)
    os.utime(image.path, ns=(1, 1))
    assert image_size(image) == (20, 31)


@pytest.mark.parametrize(
    ("size", "narrow"),
    [((1, 1), False), ((100, 1), True), ((1, 150), True), ((20, 1), True), ((7, 1), False)],
)
def test_an_image_that_no_line_of_tokens_shows_is_refused(tmp_path, size, narrow):
    image = Image(str(tmp_path / "a.png"))
    noisy_image(*size).save(image.path)
    rows_of = TiledRows(FIT, SPEC)
    if not narrow:
        assert rows_of(image) > SPEC.tokens
        return
    with pytest.raises(UserError) as error:
        rows_of(image)
    (problem,) = error.value.problems
    assert (problem.code, problem.where) == ("image/narrow", image.path)
    with pytest.raises(UserError) as error:
        read_image(image, SPEC, FIT)
    assert error.value.problems == (problem,)
    assert f"{size[0]} x {size[1]} pixels" in problem.got


def test_a_file_without_a_size_is_refused(tmp_path):
    for content in (None, b"<html>"):
        path = tmp_path / str(content)
        if content:
            path.write_bytes(content)
        with pytest.raises(UserError) as error:
            TiledRows(FIT, SPEC)(Image(str(path)))
        assert error.value.problems[0].code == ("image/format" if content else "image/file")


def test_the_cache_is_bounded_in_bytes(tmp_path):
    """One MiB is room for 151 images of 48 pixels a side: 30 of five tiles."""
    paths = [tmp_path / f"{i}.png" for i in range(40)]
    for i, path in enumerate(paths):
        noisy_image(90, 60, seed=i).save(path)
    reader = ImageReader(SPEC, 1, (Cut(24, (0.5,) * 3, "bicubic"),))
    for path in paths:
        reader(Image(str(path)), FIT)
    kept = [tensor for each in reader._kept.values() for tensor in each]
    assert 0.9 * 2**20 < sum(tensor.nbytes for tensor in kept) <= 2**20
    assert list(reader._kept)[-1] == (Image(str(paths[-1])), FIT)
