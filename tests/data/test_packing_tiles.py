"""Packing of images that are cut into tiles, beside images of one size, against a walk over every row."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from lmmkit.api.layout import Span, text
from lmmkit.api.sample import AnyRes, Image, Sample, View
from lmmkit.data.fits.rows import TiledRows
from lmmkit.data.images import Blank, ImageReader, normalise, read_image
from lmmkit.data.micro_batch.laid_out import LaidOut
from lmmkit.data.micro_batch.packed_images import read_images
from lmmkit.data.packing import Packer
from lmmkit.errors import UserError
from tests.data.test_images import noisy_image
from tests.support.tiny_model import SPEC

FIT = AnyRes()
SIZES = {"wide": (40, 11), "tall": (9, 31), "large": (70, 66), "small": (5, 6)}


@pytest.fixture
def images(tmp_path):
    """Returns an image of each shape."""
    for name, size in SIZES.items():
        noisy_image(*size).save(tmp_path / f"{name}.png")
    return {name: Image(str(tmp_path / f"{name}.png")) for name in SIZES}


def member(key, fit, *shown, spec=SPEC) -> LaidOut:
    """Returns a view with text around each image."""
    rows_of = TiledRows(fit, spec) if isinstance(fit, AnyRes) else lambda image: math.prod(spec.row_grid)
    spans = [text((1,), "bos")]
    for image in shown:
        spans += [Span(kind="image", n=rows_of(image), image=image), text((7, len(spans)), "user")]
    sample = Sample(key=key, turns=(), image_fit=fit)
    return LaidOut(View(sample=sample, supervision="none"), tuple(spans))


def packed(*members, spec=SPEC):
    packer = Packer(image=spec)
    samples = [packer.sized([each]) for each in members]
    return packer.pack(samples, read_images(samples, ImageReader(SPEC, 0)))


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, grid=(6, 4), square=2)], ids=["patches", "squares"])
def test_every_row_has_its_token_or_a_newline(images, spec):
    """`squares`: a tile of 6 x 4 patches has 3 x 2 rows."""
    members = (
        member("a", FIT, images["wide"], images["small"], spec=spec),
        member("b", "pad", images["large"], spec=spec),
        member("c", FIT, images["large"], images["wide"], spec=spec),
    )
    batch, paths = packed(*members, spec=spec)
    each = math.prod(spec.row_grid)
    filled = {
        int(row): (scatter.source, int(item))
        for scatter in batch.scatters
        for row, item in zip(scatter.row_N, scatter.item_N, strict=True)
    }
    assert {scatter.source for scatter in batch.scatters} == {"vision", "newline"}
    for v, ((view, layout), path) in enumerate(zip(members, paths, strict=True)):
        start, first = 0, True
        for span in layout:
            if span.image is not None:
                fit = view.sample.image_fit
                read = normalise(read_image(span.image, SPEC, fit), SPEC)
                read = read if read.dim() == 4 else read[None]
                if first:
                    assert torch.equal(batch.first_image(v), read[0]), "the overview"
                first = False
                tokens = (
                    TiledRows(fit, spec).tiling(span.image).token_of_rows(spec.row_grid)
                    if isinstance(fit, AnyRes)
                    else np.arange(each)
                )
                assert len(tokens) == span.n
                for i, token in enumerate(tokens.tolist()):
                    source, item = filled[int(path[start + i])]
                    if token < 0:
                        assert (source, item) == ("newline", 0)
                        continue
                    pixels = batch.pixels_ICXY[item // each]
                    assert source == "vision" and item % each == token % each
                    assert torch.equal(pixels, read[token // each])
            start += span.n
    tiles = sum(TiledRows(FIT, spec).tiling(images[name]).images for name in ("wide", "small", "large"))
    assert len(batch.pixels_ICXY) == tiles + 1, "the wide image is shown twice and encoded once"


@dataclass(frozen=True)
class Mirror:
    def __call__(self, pixels_CXY):
        return pixels_CXY.flip(2)


def test_a_blank_takes_the_rows_of_the_image_and_another_edit_is_refused(images):
    blank = replace(images["wide"], edit=Blank())
    batch, (path,) = packed(member("a", FIT, blank))
    assert len(path) == len(packed(member("a", FIT, images["wide"]))[1][0])
    assert len(batch.pixels_ICXY) == TiledRows(FIT, SPEC).tiling(blank).images and not batch.pixels_ICXY.any()
    with pytest.raises(UserError) as error:
        packed(member("a", FIT, replace(images["wide"], edit=Mirror())))
    assert [p.code for p in error.value.problems] == ["plan/tiles"]


def test_without_tiles_nothing_changes(images):
    batch, _ = packed(member("a", "pad", images["wide"], images["tall"]))
    assert [scatter.source for scatter in batch.scatters] == ["vision"]
    assert batch.pixels_ICXY.shape == (2, 3, SPEC.size, SPEC.size) and batch.first_image_V == (0,)
