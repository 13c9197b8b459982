"""Sizes of images that keep their shape: both sides in whole patches, at most so many patches in all."""

from __future__ import annotations

import math

from lmmkit.data.image_files.upright import HeightWidth


def native_grid(size: HeightWidth, patch: int, most: int, multiple: int = 1) -> HeightWidth:
    """Returns the lines and columns of patches of an image of `size` pixels (height, width).

    Each is the nearest multiple of `multiple` patches, at least one. If those are more than `most` patches, the image
    is made smaller: both sides by one factor, then rounded down.
    """
    unit, room = patch * multiple, most // multiple**2
    height, width = (side / unit for side in size)
    lines, columns = (max(1, int(side + 0.5)) for side in (height, width))
    if lines * columns > room:
        scale = math.sqrt(room / (height * width))
        lines = min(room, max(1, int(height * scale)))
        columns = min(room // lines, max(1, int(width * scale)))
        lines = min(room // columns, lines)
    return lines * multiple, columns * multiple
