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
RowsOfGrid = Callable[
    [HeightWidth], int
]  # the same of an image with a grid of patches, as the connector makes them


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
        return self.tiling(image).rows(self.spec.row_grid)

    def tiling(self, image: Image) -> Tiling:
        """Returns how an image is cut. Raises `UserError` if its header cannot be read, and as `tiling_of`."""
        return self.tiling_of(image, image_size(image))

    def tiling_of(self, image: Image, size: HeightWidth) -> Tiling:
        """Returns how an image of this size is cut. Raises `UserError` if it is so narrow that no row shows it."""
        found = Tiling.of(size, self.fit.used, self.spec.size, self.spec.row_grid)
        if not found.height or not found.width:
            got = f"{size[1]} x {size[0]} pixels on {found.grid[0]} x {found.grid[1]} tiles"
            raise UserError(IMAGE_NARROW.at(image_place(image), got=got))
        return found


@dataclass(frozen=True)
class NativeRows:
    """Gives the rows of images that keep their shape: those that the connector makes of its grid of patches."""

    fit: Native
    spec: ImageSpec
    rows_of_grid: RowsOfGrid

    def __call__(self, image: Image) -> int:
        return self.rows_of_grid(grid_of(image, self.fit, self.spec))


def grid_of(image: Image, fit: Native, spec: ImageSpec) -> HeightWidth:
    """Returns the lines and columns of patches of an image that keeps its shape.

    Raises `UserError` if its header cannot be read.
    """
    return native_grid(image_size(image), spec.patch, fit.max_patches, fit.multiple)


def rows_by_shape(fit: ImageFit, spec: ImageSpec, rows_of_grid: RowsOfGrid) -> RowsOf | None:
    """Returns what gives the rows of images that depend on their shape; None if all images have one size."""
    if isinstance(fit, AnyRes):
        return TiledRows(fit, spec)
    return NativeRows(fit, spec, rows_of_grid) if isinstance(fit, Native) else None


def check_image(image: Image, fit: ImageFit, spec: ImageSpec | None, *, whole: bool = False) -> None:
    """Raises `UserError` as `check_header`, or `check_whole`, and for an image of which tiles show nothing. `spec`: of
    the encoder that reads the tiles, if there is one."""
    size = (check_whole if whole else check_header)(image, fit)
    if spec and spec.size and isinstance(fit, AnyRes):
        TiledRows(fit, spec).tiling_of(image, size)
