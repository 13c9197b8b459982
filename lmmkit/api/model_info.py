"""Sizes that more than one package needs, and the meaning of the dimension letters.

The name of a tensor of rank two or more ends in the letters of its dimensions:

    B samples          T packed rows of a forest      D width of the decoder
    I images           S supervised rows              F width of an MLP
    N tokens an image  Q gathered rows                H query heads, G key/value heads
    C colour channels  R rows whose mass is read      K size of a head
    X, Y pixels        L layers                       V vocabulary
    E width of the encoder

    Attention also has W output rows of a layer, M keys, J chosen keys, and C values of a packed projection; losses have
    C rows of a chunk of logits, and P pairs of a row and a target.

    x_TD is [T, D]; q_THK is [T, H, K]; pixels_ICXY is [I, C, X, Y], image height first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Resample = Literal["bicubic", "bilinear"]
Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """Describes input and output of an encoder: images of `size` px a side, `grid` (rows, columns) of tokens.

    `resample` is the filter that resizes an image to that size. `square`: each row of the decoder is made of `square` x
    `square` tokens.
    """

    size: int
    grid: tuple[int, int]
    width: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    resample: Resample = "bicubic"
    square: int = 1

    @property
    def row_grid(self) -> tuple[int, int]:
        """Returns the lines and columns of the decoder's rows of one image."""
        return self.grid[0] // self.square, self.grid[1] // self.square

    @property
    def tokens(self) -> int:
        """Returns the number of tokens that the encoder gives for one image."""
        return self.grid[0] * self.grid[1]

    @property
    def patch(self) -> int:
        """Returns the width and height of a patch in pixels."""
        return self.size // self.grid[0]


@dataclass(frozen=True, kw_only=True)
class Dims:
    """Holds the sizes of the model that a plugin may build modules from. `teachers`: those of the recipe, by name."""

    width: int
    vocab: int
    layers: int
    heads: int
    image: ImageSpec
    teachers: Mapping[str, ImageSpec] = field(default_factory=dict)
