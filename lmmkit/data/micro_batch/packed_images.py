"""Makes the images of a micro-batch: reads each file once, edits it, and gives pixels to the encoder and teachers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmmkit import plugin_calls
from lmmkit.api.batch import RowGather
from lmmkit.api.model_info import ImageSpec
from lmmkit.api.needs import Need, teacher_models_of, teachers_of
from lmmkit.api.sample import AnyRes, Image, ImageFit, Native
from lmmkit.data.fits.rows import TiledRows
from lmmkit.data.image_files.image_file import unedited
from lmmkit.data.images import Blank, Cut, ImageRef, PixelRef, ReadImage, normalise, read_each, renormalise
from lmmkit.data.micro_batch.laid_out import LaidOut, SizedSample, images_of
from lmmkit.data.micro_batch.need_rows import teacher_rows
from lmmkit.errors import Problem, UserError, raise_all
from lmmkit.errors.plan import TILES


class PackedImage(NamedTuple):
    """Holds the name of the first view that shows an image, the number of its first row among those of all images of
    one size, or of all others, and likewise that of its first input of the encoder, of which tiles are several."""

    owner: str
    first: int
    input: int


def read_images(
    samples: Iterable[SizedSample], reader: ReadImage, known: Collection[PixelRef] = ()
) -> dict[PixelRef, Tensor]:
    """Reads each image of these samples once, without its edits, except for images in `known`.

    Raises `UserError` with the problems of all images that cannot be read.
    """
    images: dict[PixelRef, Tensor] = {}
    problems: list[Problem] = []
    members = [member for sample in samples for member in sample.members]
    refs: list[ImageRef] = [(unedited(image), fit) for member in members for image, fit in images_of(member)]
    for ref in dict.fromkeys(refs):
        try:
            if ref not in known:
                images.update(read_each(reader, *ref))
        except UserError as error:
            problems += error.problems
    raise_all(problems)
    return images


def image_items(image: Image, fit: ImageFit, n: int, spec: ImageSpec) -> tuple[np.ndarray, int, int]:
    """Returns the item of each of the n rows of an image, of those that the connector gives for its inputs or
    `NEWLINE`; the number of these inputs of the encoder, and of their items."""
    if not isinstance(fit, AnyRes):
        return np.arange(n), 1, n
    tiling = TiledRows(fit, spec).tiling(image)
    return tiling.token_of_rows(spec.row_grid), tiling.images, tiling.images * math.prod(spec.row_grid)


def encoder_pixels(
    shown: Mapping[ImageRef, PackedImage], images: Mapping[PixelRef, Tensor], spec: ImageSpec, *, blank: bool
) -> tuple[Tensor, list[Tensor]]:
    """Returns the inputs of the encoder: images of one size and tiles, [I, 3, X, Y], and images in their shape.

    `blank`: one image that no row uses, if there is none.
    """
    sized, native = [], []
    for ref, at in shown.items():
        found = _edited(images[unedited(ref[0]), ref[1]], ref[0], at.owner, spec)
        (native if isinstance(ref[1], Native) else sized).append(found)
    if not sized:
        return torch.zeros(int(blank and not native), 3, spec.size, spec.size), native
    if all(each.dim() == 3 for each in sized):
        return torch.stack(sized), native
    return torch.cat([each if each.dim() == 4 else each[None] for each in sized]), native


def first_images(
    members: Sequence[LaidOut], shown: Mapping[ImageRef, PackedImage], sized: int
) -> tuple[int, ...]:
    """Returns the number of the first image of each view. `sized`: how many images of one size come first."""
    firsts = (next(iter(images_of(member)), None) for member in members)
    return tuple(
        -1 if ref is None else shown[ref].input + (sized if isinstance(ref[1], Native) else 0)
        for ref in firsts
    )


def teacher_pixels(
    gathers: Mapping[Need, RowGather], shown: Mapping[ImageRef, PackedImage], images: Mapping[PixelRef, Tensor], *,
    spec: ImageSpec, teachers: Mapping[str, ImageSpec], sharded: Collection[str],
) -> tuple[dict[str, Tensor], dict[Need, RowGather]]:  # fmt: skip
    """Returns for each teacher the images that its needs read, as it reads them, and the gathers with their items
    numbered among the rows of these images. A whole model reads all images; one of `sharded` at least a blank one."""
    pixels, changed, refs = {}, dict(gathers), list(shown)
    first_I = np.array([at.first for at in shown.values()], np.int64)
    whole = teacher_models_of(gathers)
    for name in dict.fromkeys((*teachers_of(gathers), *whole)):
        if name not in teachers:
            continue
        changed, read = (changed, range(len(refs))) if name in whole else teacher_rows(name, changed, first_I)
        its = teachers[name]
        found = [_as_teacher(its, images, refs[n], shown[refs[n]].owner, spec) for n in read]
        blank = torch.zeros(int(name in sharded), 3, its.size, its.size)
        pixels[name] = torch.stack(found) if found else blank
    return pixels, changed


def _as_teacher(
    teacher: ImageSpec, images: Mapping[PixelRef, Tensor], ref: ImageRef, owner: str, spec: ImageSpec
) -> Tensor:
    """Returns the pixels of an image as a teacher reads them. The edit is that of the model's pixels, with their
    mean and deviation, at the teacher's size."""
    (image, fit), cut = ref, Cut.of(teacher)
    decoded_CXY = images[(unedited(image), fit) if cut == Cut.of(spec) else (unedited(image), fit, cut)]
    if image.edit is None:
        return normalise(decoded_CXY, teacher)
    return renormalise(_edited(decoded_CXY, image, owner, spec), spec, teacher)


def _edited(decoded_CXY: Tensor, image: Image, owner: str, spec: ImageSpec) -> Tensor:
    """Returns the pixels of an image as the encoder reads them, with the edit of the task `owner`."""
    pixels_CXY = normalise(decoded_CXY, spec)
    if image.edit is None:
        return pixels_CXY
    if decoded_CXY.dim() == 4:
        if not isinstance(image.edit, Blank):
            raise UserError(TILES.at(f"plugins.{owner}", got="an edit of an image"))
        return torch.stack([image.edit(tile) for tile in pixels_CXY])
    return plugin_calls.edited(owner, image.edit, pixels_CXY)
