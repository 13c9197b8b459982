"""Cuts images of any shape into tiles for an encoder of squares, as LLaVA-NeXT does (AnyRes).

An image becomes an overview, the complete image as one square, and the tiles of the best of several grids: there the
image keeps its shape and has black bars. In the decoder it takes the rows of the overview and then those of the tiles,
line by line over all tiles, each line with a learned newline row at its end. Lines and columns that only show bars are
left out. All sizes and grids are (height, width).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as Pil

from lmmkit.data.image_files.upright import HeightWidth

NEWLINE = -1  # in place of the number of an encoder token


def best_grid(size: HeightWidth, grids: Sequence[HeightWidth], side: int) -> HeightWidth:
    """Returns the grid of tiles, `side` pixels each, that shows most pixels of an image of `size`; among equals the one
    with the smallest rest, among those the first.

    The arithmetic is that of LLaVA-NeXT, with its rounding: another order of operations finds other grids.
    """

    def shown(grid: HeightWidth) -> tuple[int, int]:
        (height, width), (rows, columns) = size, grid
        scale = min(columns * side / width, rows * side / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, effective - rows * columns * side * side

    return max(grids, key=shown)


@dataclass(frozen=True)
class Tiling:
    """Describes how an image is cut: the `grid` of its tiles, and what remains of the plane of the encoder's tokens of
    all tiles, `height` lines from `top` and `width` columns from `left`.
    """

    grid: HeightWidth
    top: int
    left: int
    height: int
    width: int

    @classmethod
    def of(cls, size: HeightWidth, grids: Sequence[HeightWidth], side: int, tokens: HeightWidth) -> Tiling:
        """Returns the tiling of an image of `size`. A tile is `side` pixels wide and high, and becomes `tokens`."""
        grid = best_grid(size, grids, side)
        rows, columns = grid[0] * tokens[0], grid[1] * tokens[1]
        (height, width), top, left = size, 0, 0
        if width / height > columns / rows:
            top = (rows - int(round(height * (columns / width), 7))) // 2
        else:
            left = (columns - int(round(width * (rows / height), 7))) // 2
        return cls(grid, top, left, rows - 2 * top, columns - 2 * left)

    @property
    def images(self) -> int:
        """Returns the number of images that the encoder gets: the overview and the tiles."""
        return 1 + self.grid[0] * self.grid[1]

    def rows(self, tokens: HeightWidth) -> int:
        """Returns the number of rows that the image takes in the decoder."""
        return tokens[0] * tokens[1] + self.height * (self.width + 1)

    def token_of_rows(self, tokens: HeightWidth) -> np.ndarray:
        """Returns for each row its number among the encoder's tokens of the overview and all tiles, one after the
        other; `NEWLINE` for a newline row."""
        (tall, wide), each = tokens, tokens[0] * tokens[1]
        line = np.arange(self.top, self.top + self.height)[:, None]
        column = np.arange(self.left, self.left + self.width)[None]
        tile = 1 + line // tall * self.grid[1] + column // wide
        plane = tile * each + line % tall * wide + column % wide
        newlines = np.full((self.height, 1), NEWLINE)
        return np.concatenate([np.arange(each), np.concatenate([plane, newlines], 1).ravel()])


def most_rows(grid: HeightWidth, tokens: HeightWidth) -> int:
    """Returns the most rows that an image on a grid of tiles takes: one without bars."""
    return tokens[0] * tokens[1] + grid[0] * tokens[0] * (grid[1] * tokens[1] + 1)


def cut_tiles(
    image: Pil.Image, grids: Sequence[HeightWidth], side: int, resampling: Pil.Resampling
) -> list[Pil.Image]:
    """Returns the overview and the tiles of an image, each `side` pixels wide and high."""
    size = image.height, image.width
    rows, columns = best_grid(size, grids, side)
    canvas = Pil.new("RGB", (columns * side, rows * side))
    height, width = inside(size, (canvas.height, canvas.width))
    corner = (canvas.width - width) // 2, (canvas.height - height) // 2
    canvas.paste(image.resize((width, height), resampling), corner)
    corners = [(x, y) for y in range(0, canvas.height, side) for x in range(0, canvas.width, side)]
    tiles = [canvas.crop((x, y, x + side, y + side)) for x, y in corners]
    return [image.resize((side, side), resampling), *tiles]


def inside(size: HeightWidth, canvas: HeightWidth) -> HeightWidth:
    """Returns the largest size of an image on a canvas."""
    (height, width), (tall, wide) = size, canvas
    by_width, by_height = wide / width, tall / height
    if by_width < by_height:
        return min(math.ceil(height * by_width), tall), wide
    return tall, min(math.ceil(width * by_height), wide)
