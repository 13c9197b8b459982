"""Grids of images that keep their shape: bounds, rounding and shape, over many sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lmmkit.data.fits.native import native_grid
from tests.data.fits.test_tiles import sizes


@pytest.mark.parametrize(("most", "multiple"), [(1, 1), (16, 1), (100, 1), (100, 3), (9, 3), (64, 2)])
def test_grids_are_bounded_multiples_near_the_image_s_size_and_shape(most, multiple):
    patch, fitting, shrunk = 14, 0, 0
    for height, width in sizes(900):
        lines, columns = native_grid((height, width), patch, most, multiple)
        assert lines % multiple == columns % multiple == 0 and min(lines, columns) >= multiple
        assert lines * columns <= most
        unit = patch * multiple
        own = [max(1, math.floor(side / unit + 0.5)) * multiple for side in (height, width)]
        if math.prod(own) <= most:
            fitting += 1
            assert [lines, columns] == own, "an image with room keeps its size, rounded"
        else:
            shrunk += 1
            shape = (height / width) / (lines / columns)
            slack = (1 + multiple / lines) * (1 + multiple / columns)
            edge = most < 4 * multiple**2 * max(height / width, width / height)
            assert edge or 1 / slack <= shape <= slack, (height, width, lines, columns)
    assert fitting and shrunk


def test_an_image_that_is_made_smaller_uses_most_of_the_room():
    used = []
    for _ in range(50):
        height, width = np.random.default_rng(1).integers(600, 1200, 2)
        lines, columns = native_grid((int(height), int(width)), 14, 576)
        used.append(lines * columns / 576)
    assert min(used) > 0.9


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1), (1, 20_000), (20_000, 1)])
def test_images_of_one_pixel_or_of_one_line_have_patches(size):
    lines, columns = native_grid(size, 14, 50)
    assert 1 <= lines * columns <= 50 and (min(size) > 1 or min(lines, columns) == 1)
