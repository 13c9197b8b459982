"""What connectors share that make one row of each square of patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmmkit.model.connectors.connector import Connector


def squares(x_IND: Tensor, grid: tuple[int, int], factor: int) -> Tensor:
    """Returns the patches of each square of `factor` x `factor`, row by row: [I, squares, factor^2, D]."""
    high, wide = grid
    x = x_IND.unflatten(1, (high // factor, factor, wide // factor, factor))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class SquaresConnector(Connector):
    """Makes one row of each square of `factor` x `factor` patches; the rows are in the order of the squares."""

    def __init__(self, n_in: int, n_out: int, grid: tuple[int, int], factor: int):
        super().__init__(n_in, n_out, grid)
        self.factor = factor

    @staticmethod
    def rows(grid: tuple[int, int], factor: int) -> int:  # type: ignore[override]
        return grid[0] // factor * (grid[1] // factor)

    @staticmethod
    def misfit(grid: tuple[int, int], n_out: int, factor: int) -> tuple[str, str, str] | None:  # type: ignore[override]
        if not any(side % factor for side in grid):
            return None
        return "factor", str(factor), f"a divisor of both sides of the grid of {grid[0]} x {grid[1]} patches"

    def project_squares(self, x_ISPD: Tensor) -> Tensor:
        """Returns the row of each square, [I, squares, decoder width], from its P patches."""
        raise NotImplementedError

    def forward(self, x_IND: Tensor) -> Tensor:
        return self.project_squares(squares(x_IND, self.grid, self.factor))

    def packed(self, x_RD: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        each = x_RD.split([lines * columns for lines, columns in grids])
        found = [squares(x_ND[None], grid, self.factor) for x_ND, grid in zip(each, grids, strict=True)]
        return self.project_squares(torch.cat(found, 1))[0]

    def row_features(self, features_IND: Tensor) -> Tensor:
        """Returns the mean of the patches of each square."""
        return squares(features_IND, self.grid, self.factor).mean(2)

    def on_patches(self, weight_N: Tensor, grid: tuple[int, int]) -> Tensor:
        """Divides the weight of each row evenly among the patches of its square."""
        high, wide = (side // self.factor for side in grid)
        each_XY = weight_N.view(high, wide) / self.factor**2
        return each_XY.repeat_interleave(self.factor, 0).repeat_interleave(self.factor, 1)
