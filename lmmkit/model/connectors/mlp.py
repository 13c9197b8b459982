"""Connectors with one row for each token: one linear layer, or LLaVA-1.5's two."""

from __future__ import annotations

from torch import Tensor, nn

from lmmkit.model.connectors.connector import Connector


class LinearConnector(Connector):
    """Applies one linear layer."""

    def __init__(self, n_in: int, n_out: int, grid: tuple[int, int]):
        super().__init__(n_in, n_out, grid)
        self.first = nn.Linear(n_in, n_out)

    def forward(self, x_IND: Tensor) -> Tensor:
        return self.first(x_IND)


class MlpConnector(Connector):
    """Applies two linear layers with an exact GELU between them, as LLaVA-1.5 does."""

    def __init__(self, n_in: int, n_out: int, grid: tuple[int, int]):
        super().__init__(n_in, n_out, grid)
        self.first = nn.Linear(n_in, n_out)
        self.second = nn.Sequential(nn.GELU(), nn.Linear(n_out, n_out))

    def forward(self, x_IND: Tensor) -> Tensor:
        return self.second(self.first(x_IND))
