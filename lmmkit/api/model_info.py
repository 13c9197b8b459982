"""Sizes that more than one room needs, and the legend of dimension letters.

A tensor of rank two or more ends its name in the letters of its dimensions:

    B samples          T packed rows of a forest      D width of the decoder
    I images           S supervised rows              F width of an MLP
    N tokens an image  Q picked rows                  H query heads, G key/value heads
    C colour channels  R rows whose mass is read      K size of a head
    X, Y pixels        L layers                       V vocabulary

    x_TD is [T, D]; q_THK is [T, H, K]; pixels_ICXY is [I, C, X, Y], rows of the picture first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Resample = Literal["bicubic", "bilinear"]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """What an encoder reads and gives: `size` px a side in, `grid` (rows, columns) of tokens out.

    `resample` is how a picture comes to that size.
    """

    size: int
    grid: tuple[int, int]
    width: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    resample: Resample = "bicubic"

    @property
    def tokens(self) -> int:
        """Rows one image takes in the decoder."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True, kw_only=True)
class Dims:
    """The facts a plugin may build modules from."""

    width: int
    vocab: int
    layers: int
    heads: int
    image: ImageSpec
