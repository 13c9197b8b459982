"""Pixel shuffle, as in Idefics3 and SmolVLM: the features of a square of patches, joined; one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from lmmkit.model.connectors.squares import SquaresConnector


class PixelShuffleConnector(SquaresConnector):
    """Joins the features of each square of patches, and maps them by one linear layer without bias."""

    def __init__(self, n_in: int, n_out: int, grid: tuple[int, int], factor: int):
        super().__init__(n_in, n_out, grid, factor)
        self.first = nn.Linear(n_in * factor**2, n_out, bias=False)

    def project_squares(self, x_ISPD: Tensor) -> Tensor:
        return self.first(x_ISPD.flatten(2))

    def stored_values(self, tokens: int) -> int:
        return tokens * self.n_in
