"""Gives the number of rows that an image takes in the decoder: one for all, or by its shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lmmkit.api.model_info import ImageSpec
from lmmkit.api.sample import AnyRes, Image, ImageFit, Native
from lmmkit.data.fits.native import native_grid
from lmmkit.data.fits.tiles import Tiling
from lmmkit.data.image_files.image_file import check_header, check_whole, image_place, image_size
from lmmkit.data.image_files.upright import HeightWidth
from lmmkit.errors import UserError
from lmmkit.errors.data import IMAGE_NARROW

RowsOf = Callable[[Image], int]  # the number of rows that an image takes in the decoder


@dataclass(frozen=True)
class FixedRows:
    """Gives each image the same number of rows: all images have one size. 0 in a text-only model."""

    rows: int

    def __call__(self, image: Image) -> int:
        return self.rows


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


def check_image(image: Image, fit: ImageFit, spec: ImageSpec | None, *, whole: bool = False) -> None:
    """Raises `UserError` as `check_header`, or `check_whole`, and for an image of which tiles show nothing. `spec`: of
    the encoder that reads the tiles, if there is one."""
    size = (check_whole if whole else check_header)(image, fit)
    if spec and spec.size and isinstance(fit, AnyRes):
        TiledRows(fit, spec).tiling_of(image, size)
