"""Reads image files into the pixels that an encoder takes, resized as CLIP, LLaVA-1.5 or SigLIP do.

Only five formats are accepted, with at most 40 million pixels, an aspect ratio of at most 200, and no
truncated files. Pillow's plain conversion to RGB would be wrong for 16-bit grey, transparency and EXIF
rotation. For those the result is the image that a viewer shows.
"""

from __future__ import annotations

import functools
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image as Pil
from torch import Tensor

from lmmkit.api.model_info import CLIP_MEAN, CLIP_STD, ImageSpec, Resample
from lmmkit.api.sample import AnyRes, Image, ImageFit, Native
from lmmkit.data.fits.native import native_grid
from lmmkit.data.fits.tiles import HeightWidth, Tiling, cut_tiles
from lmmkit.data.tables.table_file import read_cell
from lmmkit.errors import LmmkitError, UserError
from lmmkit.errors.data import (
    IMAGE_DAMAGED,
    IMAGE_FILE,
    IMAGE_FORMAT,
    IMAGE_NARROW,
    IMAGE_SHAPE,
    IMAGE_TOO_LARGE,
)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 40_000_000  # decoded; Pillow itself only warns below 90 million
MAX_SQUARE = 4 * MAX_PIXELS  # padded
MAX_ASPECT = 200
MAX_BYTES = 4 * MAX_PIXELS  # of the file; an uncompressed bitmap takes as many
ORIENTATION = 0x0112  # EXIF tag: rotation and mirroring
RESAMPLING = {"bicubic": Pil.Resampling.BICUBIC, "bilinear": Pil.Resampling.BILINEAR}
UPRIGHT = {
    2: Pil.Transpose.FLIP_LEFT_RIGHT,
    3: Pil.Transpose.ROTATE_180,
    4: Pil.Transpose.FLIP_TOP_BOTTOM,
    5: Pil.Transpose.TRANSPOSE,
    6: Pil.Transpose.ROTATE_270,
    7: Pil.Transpose.TRANSVERSE,
    8: Pil.Transpose.ROTATE_90,
}
SIDEWAYS = [UPRIGHT[number] for number in (5, 6, 7, 8)]  # these exchange height and width


File = str | os.PathLike[str] | Image  # the path of a file, or an `Image`, which may be a part of one
ImageRef = tuple[Image, ImageFit]
TeacherRef = tuple[Image, ImageFit, "Cut"]
PixelRef = ImageRef | TeacherRef  # the key of the pixels of an image, as the model or a teacher reads it
ReadImage = Callable[[Image, ImageFit], Tensor]  # as `ImageReader`
RowsOf = Callable[[Image], int]  # the number of rows that an image takes in the decoder


@dataclass(frozen=True)
class FixedRows:
    """Gives each image the same number of rows: all images have one size. 0 in a text-only model."""

    rows: int

    def __call__(self, image: Image) -> int:
        return self.rows


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
    and size.
    """
    return _read(path, [cut], fit)[0]


def small_image(path: File, most: int) -> Pil.Image:
    """Returns an image as a viewer shows it, upright and RGB, with sides of at most `most`. Raises as `read_image`."""
    with _opened(path, "crop") as opened:
        opened.load()
        image = _rgb(_upright(opened))
        image.thumbnail((most, most))
        return image


def _read(path: File, cuts: Iterable[ImageSpec | Cut], fit: ImageFit) -> list[Tensor]:
    """Returns the pixels of an image in each of these sizes; the file is decoded once."""
    with _opened(path, fit) as opened:
        opened.load()
        image = _rgb(_upright(opened))
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


@dataclass(frozen=True)
class TiledRows:
    """Gives the rows of images that are cut into tiles: they depend on the size of the image, which its header has."""

    fit: AnyRes
    spec: ImageSpec

    def __call__(self, image: Image) -> int:
        return self.tiling(image).rows(self.spec.grid)

    def tiling(self, image: Image) -> Tiling:
        """Returns how an image is cut. Raises `UserError` if its header cannot be read, and as `tiling_of`."""
        return self.tiling_of(image, image_size(image))

    def tiling_of(self, image: Image, size: HeightWidth) -> Tiling:
        """Returns how an image of this size is cut. Raises `UserError` if it is so narrow that no line of the encoder's
        tokens shows it."""
        found = Tiling.of(size, self.fit.used, self.spec.size, self.spec.grid)
        if not found.height or not found.width:
            got = f"{size[1]} x {size[0]} pixels on {found.grid[0]} x {found.grid[1]} tiles"
            raise UserError(IMAGE_NARROW.at(image_place(image), got=got))
        return found


@dataclass(frozen=True)
class NativeRows:
    """Gives the rows of images that keep their shape: one for each patch."""

    fit: Native
    spec: ImageSpec

    def __call__(self, image: Image) -> int:
        lines, columns = self.grid(image)
        return lines * columns

    def grid(self, image: Image) -> HeightWidth:
        """Returns the lines and columns of an image. Raises `UserError` if its header cannot be read."""
        return native_grid(image_size(image), self.spec.patch, self.fit.max_patches, self.fit.multiple)


def rows_by_shape(fit: ImageFit, spec: ImageSpec) -> RowsOf | None:
    """Returns what gives the rows of images that depend on their shape; None if all images have one size."""
    if isinstance(fit, AnyRes):
        return TiledRows(fit, spec)
    return NativeRows(fit, spec) if isinstance(fit, Native) else None


def pixels_shape(image: Image, fit: ImageFit, spec: ImageSpec) -> tuple[int, ...]:
    """Returns the shape of what `read_image` returns, from the header of the file."""
    if isinstance(fit, AnyRes):
        return TiledRows(fit, spec).tiling(image).images, 3, spec.size, spec.size
    if isinstance(fit, Native):
        lines, columns = NativeRows(fit, spec).grid(image)
        return 3, lines * spec.patch, columns * spec.patch
    return 3, spec.size, spec.size


def image_size(image: Image) -> HeightWidth:
    """Returns (height, width) of an image, upright, from the header of its file."""
    try:
        found = os.stat(image.path)
    except (OSError, ValueError):
        return _size.__wrapped__(unedited(image), 0, 0)  # says why the file cannot be read
    return _size(unedited(image), found.st_mtime_ns, found.st_size)


@functools.lru_cache(4096)
def _size(image: Image, changed: int, size: int) -> HeightWidth:
    with _opened(image, "crop") as opened:
        return _upright_size(opened)


def check_header(path: File, fit: ImageFit) -> HeightWidth:
    """Returns (height, width) of an image, upright. Raises `UserError` if its header breaks a rule of `read_image`.

    Pixels are not read. So the rotation of a PNG is not found if it is written behind them, which is rare.
    """
    with _opened(path, fit) as opened:
        pixels_first = opened.format == "PNG" and "exif" not in opened.info
        return (opened.height, opened.width) if pixels_first else _upright_size(opened)


def check_whole(path: File, fit: ImageFit) -> HeightWidth:
    """Returns (height, width) of an image, upright. Raises `UserError` if its header breaks a rule of `read_image` or a
    pixel cannot be decoded."""
    with _opened(path, fit) as opened:
        opened.load()
        return _upright_size(opened)


def check_image(image: Image, fit: ImageFit, spec: ImageSpec | None, *, whole: bool = False) -> None:
    """Raises `UserError` as `check_header`, or `check_whole`, and for an image of which tiles show nothing. `spec`: of
    the encoder that reads the tiles, if there is one."""
    size = (check_whole if whole else check_header)(image, fit)
    if spec and spec.size and isinstance(fit, AnyRes):
        TiledRows(fit, spec).tiling_of(image, size)


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


def unedited(image: Image) -> Image:
    """Returns the image as its file contains it."""
    return image if image.edit is None else replace(image, edit=None)


@functools.cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    return torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]


def save_pixels(image: Pil.Image, path: str | os.PathLike[str]) -> None:
    """Writes an image in memory to a file that `read_image` reads as it would read the image's own file.

    Raises `UserError` if its pixels cannot be read.
    """
    with _as_user_error("an image in memory"):
        _rgb(_upright(image)).save(path, format="BMP")


def read_bytes(image: Image) -> tuple[bytes, str]:
    """Returns the file of an image, and its format as Pillow names it. Raises `UserError` as `check_header` does."""
    name = image_place(image)
    with _as_user_error(name), _bytes(image, name) as data, Pil.open(data, formats=FORMATS) as opened:
        _check_size(name, *opened.size, "crop")
        data.seek(0)
        return data.read(), str(opened.format)


@contextmanager
def _opened(file: File, fit: ImageFit) -> Iterator[Pil.Image]:
    """Opens the image and checks its header. Every error in the block becomes a `UserError`."""
    image = file if isinstance(file, Image) else Image(os.fspath(file))
    name = image_place(image)
    with _as_user_error(name), _bytes(image, name) as data, Pil.open(data, formats=FORMATS) as opened:
        _check_size(name, *opened.size, fit)
        yield opened


def image_place(image: Image) -> str:
    """Returns the place of an image as messages name it."""
    if image.cell is not None:
        record, column, number = image.cell
        return f"{image.path}:{record + 1} (`{column}`, image {number})"
    part = image.part
    return image.path if part is None else f"{image.path} (bytes {part[0]} to {sum(part)})"


@contextmanager
def _as_user_error(path: str) -> Iterator[None]:
    """Turns every error inside into a `UserError` about the file `path`."""
    try:
        yield
    except LmmkitError:
        raise
    except Pil.UnidentifiedImageError as error:
        problem = IMAGE_FORMAT.at(path, got="a file in no known format", formats=", ".join(FORMATS))
        raise UserError(problem) from error
    except (Pil.DecompressionBombError, Pil.DecompressionBombWarning) as error:
        raise UserError(IMAGE_TOO_LARGE.at(path, got=str(error), most=f"{MAX_PIXELS} pixels")) from error
    except Exception as error:  # for broken files Pillow's decoders raise errors of many types
        missing = error.strerror if isinstance(error, OSError) else None
        code, reason = (IMAGE_FILE, missing) if missing else (IMAGE_DAMAGED, str(error))
        raise UserError(code.at(path, got=reason or type(error).__name__)) from error


def _bytes(image: Image, path: str) -> BinaryIO:
    """Opens the file of an image, or the part of a file that contains it."""
    if image.cell is not None:
        data = read_cell(image.path, *image.cell)
        if len(data) > MAX_BYTES:
            raise UserError(IMAGE_TOO_LARGE.at(path, got=f"{len(data)} bytes", most=f"{MAX_BYTES} bytes"))
        return BytesIO(data)
    # A pipe or a device could block or never end. O_NONBLOCK avoids the wait; the check below refuses both.
    file = open(os.open(image.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115
    try:
        found = os.fstat(file.fileno())
        offset, size = image.part or (0, found.st_size)
        if not stat.S_ISREG(found.st_mode):
            raise UserError(IMAGE_FILE.at(path, got="no regular file"))
        if size > MAX_BYTES:
            raise UserError(IMAGE_TOO_LARGE.at(path, got=f"{size} bytes", most=f"{MAX_BYTES} bytes"))
        if image.part is None:
            return file
        data = os.pread(file.fileno(), size, offset)
        if len(data) < size:
            raise UserError(IMAGE_DAMAGED.at(path, got=f"{len(data)} of {size} bytes"))
    except BaseException:
        file.close()
        raise
    file.close()
    return BytesIO(data)


def _check_size(path: str, width: int, height: int, fit: ImageFit) -> None:
    got = f"{width} x {height} pixels"
    long, short = max(width, height), min(width, height)
    if short < 1 or long > MAX_ASPECT * short:
        raise UserError(IMAGE_SHAPE.at(path, got=got, ratio=MAX_ASPECT))
    if width * height > MAX_PIXELS:
        raise UserError(IMAGE_TOO_LARGE.at(path, got=got, most=f"{MAX_PIXELS} pixels"))
    if fit == "pad" and long * long > MAX_SQUARE:
        raise UserError(
            IMAGE_TOO_LARGE.at(path, got=got, most=f"{MAX_SQUARE} pixels when padded to a square")
        )


def _upright(image: Pil.Image) -> Pil.Image:
    method = _turn(image)
    return image if method is None else image.transpose(method)


def _upright_size(image: Pil.Image) -> HeightWidth:
    """Returns (height, width) of the upright image. Reads the pixels of a PNG, behind which its rotation may be."""
    width, height = image.size
    return (width, height) if _turn(image) in SIDEWAYS else (height, width)


def _turn(image: Pil.Image) -> Pil.Transpose | None:
    """Returns what turns an image upright, if anything does."""
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # broken EXIF is common, and no reason to refuse the image
        return None


def _rgb(image: Pil.Image) -> Pil.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey; Pillow would clip it at 255
        values = np.asarray(image).astype(np.float32).clip(0, 65535)
        return Pil.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Pil.new("RGBA", image.size, (255, 255, 255, 255))
        return Pil.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


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
