"""A resampler: learned queries attend to an image's tokens, in the blocks of Idefics2's perceiver resampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmmkit.api.components import LearnedTokens
from lmmkit.model.connectors.connector import Connector
from lmmkit.model.layers import FusedLinear, Linear, RMSNorm, SwiGLU

NORM_EPS = 1e-6


class ResamplerBlock(nn.Module):
    """Lets queries attend to the tokens of their image and to each other; then a gated MLP."""

    def __init__(self, width: int, heads: int, *, gain: float):
        super().__init__()
        self.heads = heads
        self.query_norm, self.token_norm = RMSNorm(width, NORM_EPS), RMSNorm(width, NORM_EPS)
        self.q = Linear(width, width, bias=False)
        self.kv = FusedLinear(width, {"k": width, "v": width}, bias=False)
        self.out = Linear(width, width, bias=False, gain=gain)
        self.mlp_norm = RMSNorm(width, NORM_EPS)
        self.mlp = SwiGLU(width, 4 * width, gain=gain)

    def forward(self, x_IQD: Tensor, tokens_IND: Tensor) -> Tensor:
        query_IQD = self.query_norm(x_IQD)
        both = torch.cat([self.token_norm(tokens_IND), query_IQD], 1)
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.q(query_IQD), *self.kv(both).chunk(2, -1))
        )
        x_IQD = x_IQD + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x_IQD + self.mlp(self.mlp_norm(x_IQD))


class ResamplerConnector(Connector):
    """Maps the tokens to the decoder's width by one linear layer, and gives the states of `queries` learned queries
    after `depth` blocks. The grid has no effect: the features of the encoder have positions."""

    fixed_patches: ClassVar[bool] = False

    def __init__(self, n_in: int, n_out: int, grid: tuple[int, int], *, queries: int, depth: int, heads: int):
        super().__init__(n_in, n_out, grid)
        self.first = nn.Linear(n_in, n_out)
        self.queries = LearnedTokens(queries, n_out)
        gain = (2 * depth) ** -0.5
        self.blocks = nn.ModuleList(ResamplerBlock(n_out, heads, gain=gain) for _ in range(depth))
        self.norm = RMSNorm(n_out, NORM_EPS)

    @staticmethod
    def rows(grid: tuple[int, int], queries: int, depth: int, heads: int) -> int:  # type: ignore[override]
        return queries

    @staticmethod
    def misfit(  # type: ignore[override]
        grid: tuple[int, int], n_out: int, queries: int, depth: int, heads: int
    ) -> tuple[str, str, str] | None:
        return ("heads", str(heads), f"a divisor of the decoder's width, {n_out}") if n_out % heads else None

    def forward(self, x_IND: Tensor) -> Tensor:
        tokens_IND = self.first(x_IND)
        x_IQD = self.queries().expand(len(tokens_IND), -1, -1)
        for block in self.blocks:
            x_IQD = block(x_IQD, tokens_IND)
        return self.norm(x_IQD)

    def packed(self, x_RD: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Runs the blocks for each image alone, as queries attend to the tokens of their own image."""
        each = x_RD.split([lines * columns for lines, columns in grids])
        return torch.cat([self(x_ND[None])[0] for x_ND in each])

    def row_features(self, features_IND: Tensor) -> Tensor:
        raise AssertionError("the plan refuses a need for features of rows without fixed patches")

    def on_patches(self, weight_N: Tensor, grid: tuple[int, int]) -> None:
        return None

    def stored_values(self, tokens: int) -> int:
        images = tokens // (self.grid[0] * self.grid[1])
        queries = images * len(self.queries.weight)
        block = (3 * tokens + 22 * queries) * self.n_out
        return tokens * (self.n_in + self.n_out) + len(self.blocks) * block
