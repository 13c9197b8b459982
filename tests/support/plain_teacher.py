"""A teacher's features of one image, patch by patch: the slow twin of `TeacherAt`."""

from __future__ import annotations

import torch
from torch import Tensor

from lmmkit.api.model_info import ImageSpec
from lmmkit.api.sample import Image
from lmmkit.attention.backends import Sdpa
from lmmkit.data.images import normalise, renormalise
from lmmkit.model.teacher import Teacher
from lmmkit.model.vision import VisionShape, ViT
from tests.support.hf_weights import scramble
from tests.support.tiny_model import SPEC, read


def teacher(side: int, patch: int, width: int, *, dtype: torch.dtype = torch.float64, **constants) -> Teacher:
    """Returns a teacher with random weights, for images of `side` pixels."""
    image = ImageSpec(size=side, grid=(side // patch, side // patch), width=width, **constants)
    shape = VisionShape(
        width=width, depth=2, heads=2, mlp=24, patch=patch, image=image, feature_layer=-1, patch_bias=True
    )
    encoder = ViT(shape, Sdpa())
    scramble(encoder, side + patch)
    return Teacher(encoder.to(dtype), image, torch.float32)


def features(made: Teacher, image: Image, fit: str) -> Tensor:
    """Returns the features of an image on the grid of the tiny model, [N, width]."""
    x_CXY = pixels(image, fit, made.image)
    with torch.no_grad():
        (x_ND,) = made.encoder(x_CXY[None].to(next(made.encoder.parameters()).dtype))
    x_XYD = x_ND.view(*made.image.grid, -1)
    return torch.stack([at(x_XYD, r, c) for r in range(SPEC.grid[0]) for c in range(SPEC.grid[1])])


def pixels(image: Image, fit: str, spec: ImageSpec) -> Tensor:
    """Returns an image as a teacher reads it: an edit gets what it would get from the model, at another size."""
    if image.edit is None:
        return normalise(read(image, fit, spec.size), spec)
    return renormalise(image.edit(normalise(read(image, fit, spec.size), SPEC)), SPEC, spec)


def at(x_XYD: Tensor, row: int, column: int) -> Tensor:
    """Returns the features behind one patch of the tiny model: the mean of a finer grid, else bilinear."""
    height, width = x_XYD.shape[:2]
    if height >= SPEC.grid[0]:
        down, right = height // SPEC.grid[0], width // SPEC.grid[1]
        cells = [x_XYD[row * down + i, column * right + j] for i in range(down) for j in range(right)]
        return torch.stack(cells).mean(0)
    total = torch.zeros_like(x_XYD[0, 0])
    for r, share_r in beside((row + 0.5) * height / SPEC.grid[0] - 0.5, height):
        for c, share_c in beside((column + 0.5) * width / SPEC.grid[1] - 0.5, width):
            total += share_r * share_c * x_XYD[r, c]
    return total


def beside(place: float, n: int) -> list[tuple[int, float]]:
    """Returns the two cells around a place, with their shares."""
    place = min(max(place, 0.0), n - 1.0)
    first = min(int(place), n - 2)
    return [(first, 1 - (place - first)), (first + 1, place - first)]
