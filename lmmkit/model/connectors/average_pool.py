"""Average pooling, as LLaVA-NeXT-Video does it: the mean of a square of patches, then LLaVA-1.5's two linear layers."""

from __future__ import annotations

from torch import Tensor, nn

from lmmkit.model.connectors.squares import SquaresConnector


class AveragePoolConnector(SquaresConnector):
    """Takes the mean of each square of patches, then applies two linear layers with an exact GELU between them."""

    def __init__(self, n_in: int, n_out: int, grid: tuple[int, int], factor: int):
        super().__init__(n_in, n_out, grid, factor)
        self.first = nn.Linear(n_in, n_out)
        self.second = nn.Sequential(nn.GELU(), nn.Linear(n_out, n_out))

    def project_squares(self, x_ISPD: Tensor) -> Tensor:
        return self.second(self.first(x_ISPD.mean(2)))

    def stored_values(self, tokens: int) -> int:
        return tokens // self.factor**2 * (self.n_in + 2 * self.n_out)
