"""Reads images into the pixels that an encoder takes, resized as CLIP, LLaVA-1.5 or SigLIP do."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image as Pil
from torch import Tensor

from lmmkit.api.model_info import CLIP_MEAN, CLIP_STD, ImageSpec, Resample
from lmmkit.api.sample import AnyRes, Image, ImageFit, Native
from lmmkit.data.fits.native import native_grid
from lmmkit.data.fits.rows import TiledRows, grid_of
from lmmkit.data.fits.tiles import cut_tiles
from lmmkit.data.image_files.image_file import File, as_image, opened_image, unedited
from lmmkit.data.image_files.upright import as_rgb, upright

RESAMPLING = {"bicubic": Pil.Resampling.BICUBIC, "bilinear": Pil.Resampling.BILINEAR}

ImageRef = tuple[Image, ImageFit]
TeacherRef = tuple[Image, ImageFit, "Cut"]
PixelRef = ImageRef | TeacherRef  # the key of the pixels of an image, as the model or a teacher reads it
ReadImage = Callable[[Image, ImageFit], Tensor]  # as `ImageReader`


class Cut(NamedTuple):
    """Holds what of an `ImageSpec` decides about the uint8 pixels of an image."""

    size: int
    mean: tuple[float, float, float]
    resample: Resample

    @classmethod
    def of(cls, spec: ImageSpec) -> Cut:
        return cls(spec.size, spec.mean, spec.resample)


def read_image(path: File, cut: ImageSpec | Cut, fit: ImageFit) -> Tensor:
    """Returns the image, upright and RGB, as uint8 [3, size, size] (channels, height, width).

    `crop`: the short side becomes `size` and the middle is cut out, as in LLaVA-1.5's first stage.
    `pad`: before that, the image is made square with bars in the mean colour, as in its second stage.
    `stretch`: both sides become `size`, as in SigLIP. Of an animation the first frame is read.
    Transparent pixels are blended over white. `AnyRes`: the overview and the tiles, [images, 3, size, size]. `Native`:
    the image in its shape, [3, height, width].

    Raises `UserError` with path and reason unless the file is a complete image in an allowed format
    and size, of which the tiles show something.
    """
    return _read(path, [cut], fit)[0]


def _read(path: File, cuts: Sequence[ImageSpec | Cut], fit: ImageFit) -> list[Tensor]:
    """Returns the pixels of an image in each of these sizes; the file is decoded once."""
    with opened_image(path, fit) as opened:
        opened.load()
        image = as_rgb(upright(opened))
        for cut in cuts:
            if isinstance(fit, AnyRes) and isinstance(cut, ImageSpec):
                TiledRows(fit, cut).tiling_of(as_image(path), (image.height, image.width))
        return [_tensor(image, cut, fit) for cut in cuts]


def _tensor(image: Pil.Image, cut: ImageSpec | Cut, fit: ImageFit) -> Tensor:
    """Returns the pixels of an image for an encoder: uint8 [3, size, size], or of each tile."""
    if isinstance(fit, AnyRes):
        tiles = cut_tiles(image, fit.used, cut.size, RESAMPLING[cut.resample])
        return (
            torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles])).permute(0, 3, 1, 2).contiguous()
        )
    if isinstance(fit, Native):
        assert isinstance(cut, ImageSpec), "the plan refuses teachers, which have a size of their own"
        lines, columns = native_grid((image.height, image.width), cut.patch, fit.max_patches, fit.multiple)
        size, filter_ = (columns * cut.patch, lines * cut.patch), RESAMPLING[cut.resample]
        resized = image if image.size == size else image.resize(size, filter_)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()
    return torch.from_numpy(np.array(_fitted(image, cut, fit))).permute(2, 0, 1).contiguous()


def pixels_shape(image: Image, fit: ImageFit, spec: ImageSpec) -> tuple[int, ...]:
    """Returns the shape of what `read_image` returns, from the header of the file."""
    if isinstance(fit, AnyRes):
        return TiledRows(fit, spec).tiling(image).images, 3, spec.size, spec.size
    if isinstance(fit, Native):
        lines, columns = grid_of(image, fit, spec)
        return 3, lines * spec.patch, columns * spec.patch
    return 3, spec.size, spec.size


def normalise(pixels_CXY: Tensor, spec: ImageSpec) -> Tensor:
    """Converts uint8 [3, X, Y] to float32: scales to [0, 1], subtracts the mean, divides by the deviation."""
    mean, std = _constants(spec.mean, spec.std)
    return pixels_CXY.to(torch.float32).mul_(1 / 255).sub_(mean).div_(std)


def renormalise(pixels_CXY: Tensor, spec: ImageSpec, to: ImageSpec) -> Tensor:
    """Returns pixels with the mean and deviation of `spec` as pixels with those of `to`."""
    if (spec.mean, spec.std) == (to.mean, to.std):
        return pixels_CXY
    (mean, std), (to_mean, to_std) = _constants(spec.mean, spec.std), _constants(to.mean, to.std)
    return (pixels_CXY * std + (mean - to_mean)) / to_std


def natural(pixels_CXY: Tensor, spec: ImageSpec) -> Tensor:
    """Returns preprocessed pixels as RGB in 0..1."""
    mean, std = (constant.to(pixels_CXY) for constant in _constants(spec.mean, spec.std))
    return (pixels_CXY * std + mean).clamp(0, 1)


@dataclass(frozen=True)
class Blank:
    """Describes an edit that replaces the image by one colour: the `mean` colour (zeros), or `black`."""

    kind: Literal["mean", "black"] = "mean"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __call__(self, pixels_CXY: Tensor) -> Tensor:
        """Returns an image [3, X, Y] of one colour."""
        if self.kind == "mean":
            return torch.zeros_like(pixels_CXY)
        mean, std = _constants(self.mean, self.std)
        return (-mean / std).to(pixels_CXY.dtype).expand_as(pixels_CXY).contiguous()


class ImageReader:
    """Reads images without their edits, and keeps the last used ones in memory.

    `cache_mb` bounds this cache in MiB. Pickling leaves the cache out: each data worker fills another
    one. Do not share a reader between threads. `teachers`: further sizes in which images are read.
    """

    def __init__(self, spec: ImageSpec, cache_mb: int = 256, teachers: tuple[Cut, ...] = ()) -> None:
        self.spec = spec
        self.cache_mb = cache_mb
        self.teachers = teachers
        self._room = max(0, cache_mb * 2**20)  # bytes
        self._kept: OrderedDict[ImageRef, list[Tensor]] = OrderedDict()

    def __call__(self, image: Image, fit: ImageFit) -> Tensor:
        """Returns what `read_image` returns, which the cache may share. Raises as `read_image`."""
        return self._all(image, fit)[0]

    def each(self, image: Image, fit: ImageFit) -> dict[PixelRef, Tensor]:
        """Returns the image as the model reads it, and as each of the teachers reads it."""
        refs: list[PixelRef] = [(image, fit), *((image, fit, cut) for cut in self.teachers)]
        return dict(zip(refs, self._all(image, fit), strict=True))

    def _all(self, image: Image, fit: ImageFit) -> list[Tensor]:
        key = (unedited(image), fit)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        every = _read(image, (self.spec, *self.teachers), fit)
        if self._room:
            self._kept[key] = every
            self._room -= _bytes_of(every)
            while self._room < 0:
                self._room += _bytes_of(self._kept.popitem(last=False)[1])
        return every

    def __reduce__(self) -> tuple[object, ...]:
        return ImageReader, (self.spec, self.cache_mb, self.teachers)


def read_each(reader: ReadImage, image: Image, fit: ImageFit) -> dict[PixelRef, Tensor]:
    """Returns an image in all sizes that a reader reads."""
    return reader.each(image, fit) if isinstance(reader, ImageReader) else {(image, fit): reader(image, fit)}


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(each.nbytes for each in tensors)


@functools.cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    return torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]


def _fitted(image: Pil.Image, spec: ImageSpec | Cut, fit: ImageFit) -> Pil.Image:
    size = spec.size
    width, height = image.size
    if fit == "pad" and width != height:
        side = max(width, height)
        square = Pil.new("RGB", (side, side), tuple(int(255 * mean) for mean in spec.mean))
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        image, width, height = square, side, side
    if fit == "stretch":
        width, height = size, size
    elif width <= height:
        width, height = size, int(size * height / width)
    else:
        width, height = int(size * width / height), size
    if image.size != (width, height):
        image = image.resize((width, height), RESAMPLING[spec.resample])
    left, top = (width - size) // 2, (height - size) // 2
    if (width, height) == (size, size):
        return image
    return image.crop((left, top, left + size, top + size))
