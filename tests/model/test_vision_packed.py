"""Images of unlike sizes in one pass of an encoder, against one image at a time by plain means."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lmmkit.api.batch import Patches
from lmmkit.attention.backends import Sdpa
from lmmkit.attention.eager import Eager
from lmmkit.model.vision import ViT
from tests.model.test_vision import CLIP, SIGLIP, vit
from tests.support.plain_twins import off, show

GRIDS = [(5, 5), (2, 7), (1, 1), (8, 3), (2, 7), (1, 12), (4, 4)]


def drawn(grids, side: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randn(3, lines * side, columns * side, generator=draw) for lines, columns in grids]


def alone(encoder: ViT, pixels_CXY: torch.Tensor) -> torch.Tensor:
    """Returns the tokens of one image: a convolution, the interpolated positions, dense attention."""
    plane = encoder.patch(pixels_CXY[None])[0]
    first, grid = len(encoder.class_token), tuple(plane.shape[1:])
    table = encoder.position[first:].unflatten(0, encoder.image.grid).permute(2, 0, 1)[None]
    table = (
        table if grid == encoder.image.grid else F.interpolate(table, grid, mode="bicubic", antialias=True)
    )
    position = torch.cat([encoder.position[:first], table[0].flatten(1).T])
    x_1ND = (torch.cat([encoder.class_token, plane.flatten(1).T]) + position)[None]
    x_1ND = encoder.pre_norm(x_1ND)
    for block in encoder.blocks:
        q, k, v = (x.unflatten(-1, (encoder.shape.heads, -1)) for x in block.before(x_1ND).chunk(3, -1))
        x_1ND = block.after(x_1ND, Eager().dense(q, k, v).flatten(2))
    return x_1ND[0, first:]


@pytest.mark.parametrize("backend", [Sdpa(), Eager()], ids=lambda each: each.name)
@pytest.mark.parametrize("shape", [CLIP, SIGLIP], ids=["class token", "none"])
def test_packed_images_have_the_tokens_and_gradients_of_each_alone(shape, backend):
    encoder, pixels = vit(shape, backend), drawn(GRIDS, shape.patch)
    images = Patches.of(pixels, shape.patch)
    assert all(torch.equal(images.pixels(i), each) for i, each in enumerate(pixels))
    weight_RD = torch.randn(sum(images.lengths), shape.width, generator=torch.Generator().manual_seed(1))
    got, want = encoder.packed(images), torch.cat([alone(encoder, each) for each in pixels])
    show("off", off(got, want))
    assert got.shape == weight_RD.shape and off(got, want) < 1e-5
    own, plain = (torch.autograd.grad((x * weight_RD).sum(), list(encoder.parameters())) for x in (got, want))
    for (name, _), mine, theirs in zip(encoder.named_parameters(), own, plain, strict=True):
        assert off(mine, theirs) < 2e-5, name


def test_images_of_the_own_size_are_those_of_the_dense_pass():
    encoder, pixels = vit(CLIP), drawn([(5, 5)] * 3, CLIP.patch)
    dense = encoder(torch.stack(pixels)).flatten(0, 1)
    assert off(encoder.packed(Patches.of(pixels, CLIP.patch)), dense) < 1e-5


def test_an_image_does_not_depend_on_those_beside_it():
    encoder, pixels = vit(CLIP), drawn(GRIDS, CLIP.patch)
    before = encoder.packed(Patches.of(pixels, CLIP.patch)).split([a * b for a, b in GRIDS])
    pixels[1] = pixels[1] + 9
    after = encoder.packed(Patches.of(pixels, CLIP.patch)).split([a * b for a, b in GRIDS])
    assert [off(a, b) > 1e-3 for a, b in zip(before, after, strict=True)] == [
        i == 1 for i in range(len(GRIDS))
    ]
