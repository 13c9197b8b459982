"""The base class of connectors, which map the encoder's tokens of an image to its rows in the decoder."""

from __future__ import annotations

from torch import Tensor, nn


class Connector(nn.Module):
    """Maps [I, N, vision width] to [I, rows, decoder width]."""

    @staticmethod
    def rows(grid: tuple[int, int]) -> int:
        """Returns the rows of an image whose encoder output is a grid (height, width): one for each token."""
        return grid[0] * grid[1]

    def seen_by_rows(self, seen_IND: Tensor) -> Tensor:
        """Returns what the encoder gives for the part of the image that each row is made of, [I, rows, vision
        width]. A connector with fewer rows than tokens overrides it."""
        return seen_IND


class NoConnector(Connector):
    """Gives the encoder's output unchanged: the model's image reducer maps it to the decoder's width."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()

    def forward(self, x_IND: Tensor) -> Tensor:
        return x_IND
