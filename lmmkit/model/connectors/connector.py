"""The base class of connectors, which map the encoder's tokens of an image to its rows in the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn


class Connector(nn.Module):
    """Maps [I, N, vision width] to [I, rows, decoder width].

    `grid`: the rows and columns of the N tokens. `fixed_patches`: whether each row is made of the same patches of
    every image.
    """

    fixed_patches: ClassVar[bool] = True

    def __init__(self, n_in: int, n_out: int, grid: tuple[int, int]):
        super().__init__()
        self.n_in, self.n_out, self.grid = n_in, n_out, grid

    @staticmethod
    def rows(grid: tuple[int, int]) -> int:
        """Returns the rows of an image whose encoder output is a grid (height, width): one for each token. The
        settings of the kind are further arguments."""
        return grid[0] * grid[1]

    @staticmethod
    def misfit(grid: tuple[int, int], n_out: int) -> tuple[str, str, str] | None:
        """Returns which setting does not fit, what it is, and what it may be; None if all fit. The settings of the
        kind are further arguments."""
        return None

    def packed(self, x_RD: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Returns the rows of images of unlike sizes, [rows, decoder width], image by image.

        Args:
            x_RD: the encoder's tokens of all images, image by image and line by line.
            grids: the lines and columns of tokens of each image. A connector with fewer rows than tokens, which
                depend on them, overrides the method.
        """
        return self(x_RD[None])[0]

    def row_features(self, features_IND: Tensor) -> Tensor:
        """Returns the encoder's features behind each row, [I, rows, vision width]: those of the part of the image that
        the row is made of. A connector with fewer rows than tokens overrides it."""
        return features_IND

    def on_patches(self, weight_N: Tensor, grid: tuple[int, int]) -> Tensor | None:
        """Returns the weights of the rows of an image with a grid of patches as weights of its patches, [grid]; None
        if these are not known."""
        return weight_N.view(grid)

    def stored_values(self, tokens: int) -> int:
        """Returns how many values a training step stores for images of `tokens` tokens together."""
        return tokens * (self.n_in + 2 * self.n_out)


class NoConnector(Connector):
    """Gives the encoder's output unchanged: the model's image reducer maps it to the decoder's width."""

    def forward(self, x_IND: Tensor) -> Tensor:
        return x_IND
