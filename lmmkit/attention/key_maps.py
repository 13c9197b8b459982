"""Attention weights on chosen keys: A[q, k] = exp(q k / sqrt(K) - lse) for some queries, beside fused kernels.

With a gradient g of A, the gradient of the scores s is that of attention itself, plus A g at the chosen keys (two small
products), minus P G at ALL keys, where G[q] is the sum of A g over the chosen keys of q. The last is a shift of
the row term of the softmax backward by G, which `hand_over` of `merge.py` passes on.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmmkit.attention.interface import grouped, moved, ungrouped


class KeyBlock(NamedTuple):
    """Describes the queries `start` to `stop` of a map, those of one view, and its keys, `key_J`, in order. Query
    i attends to the first `attended_I[i]` of them."""

    start: int
    stop: int
    key_J: np.ndarray
    attended_I: np.ndarray


@dataclass(frozen=True)
class KeyMap:
    """Describes a map of attention weights, on the host: the mean over `heads` (None: all), in each of `layers` (None:
    all), of the rows `row_Q` on the keys of their blocks: [Q, width], 0 where a query does not attend to a key.

    `name`: what asks for it. With `summed` the sum over the keys is returned, [Q, 1].
    """

    name: Hashable
    row_Q: np.ndarray
    blocks: tuple[KeyBlock, ...]
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    summed: bool = False

    @property
    def width(self) -> int:
        """Returns the largest number of keys."""
        return 1 if self.summed else max((len(block.key_J) for block in self.blocks), default=0)


def padded_keys(blocks: Sequence[KeyBlock]) -> np.ndarray:
    """Returns the keys of each query, -1 where it has none or does not attend to it: [Q, K]."""
    width = max((len(block.key_J) for block in blocks), default=0)
    found = np.full((sum(len(block.attended_I) for block in blocks), width), -1, np.int64)
    for start, stop, key_J, attended_I in blocks:
        found[start:stop, : len(key_J)] = np.where(np.arange(len(key_J)) < attended_I[:, None], key_J, -1)
    return found


class _Placed(NamedTuple):
    """Holds a block on the device: its place among the queries, their places among the output rows, its keys,
    and which it does not attend to."""

    queries: slice
    place_R: Tensor
    key_J: Tensor
    masked_RJ: Tensor


class MapGradient(NamedTuple):
    """Holds what the gradient of a block adds: to row terms, to queries, and to keys."""

    place_R: Tensor
    term_RH: Tensor
    q_RHK: Tensor
    key_J: Tensor
    k_JGK: Tensor


@dataclass(frozen=True, eq=False)
class MapReader:
    """Computes a map in one layer, on the device of its blocks."""

    of: KeyMap
    blocks: Sequence[_Placed]
    head_S: Tensor | None

    @property
    def name(self) -> Hashable:
        """Returns what asks for the map."""
        return self.of.name

    @property
    def layers(self) -> tuple[int, ...] | None:
        """Returns the layers that it is read in; None for all."""
        return self.of.layers

    def read(self, q_WHK: Tensor, k_TGK: Tensor, lse_WH: Tensor) -> Tensor:
        """Returns the map, from the rotated queries of the output rows and keys of all rows: [Q, width]."""
        found_QJ = lse_WH.new_zeros(len(self.of.row_Q), self.of.width)
        for block in self.blocks:
            weight_RJ = self._weights(block, q_WHK, k_TGK, lse_WH).mean(0)
            self._part(found_QJ, block).copy_(
                weight_RJ.sum(-1, keepdim=True) if self.of.summed else weight_RJ
            )
        return found_QJ

    def gradients(self, d_QJ: Tensor, q_WHK: Tensor, k_TGK: Tensor, lse_WH: Tensor) -> Iterator[MapGradient]:
        """Yields what each block adds. The weights of its heads are computed again."""
        heads = q_WHK.shape[1]
        for block in self.blocks:
            weight_SRJ = self._weights(block, q_WHK, k_TGK, lse_WH)
            d_SRJ = weight_SRJ * (self._part(d_QJ, block) / len(weight_SRJ))
            score_HRJ = self._all_heads(d_SRJ, heads)
            q_RHK, k_JHK = self._operands(block, q_WHK, k_TGK)
            scale = q_WHK.shape[-1] ** -0.5
            to_q = torch.einsum("hrj,jhk->rhk", score_HRJ, k_JHK) * scale
            to_k = torch.einsum("hrj,rhk->jhk", score_HRJ, q_RHK) * scale
            to_k = ungrouped(to_k, k_TGK.shape[1])
            yield MapGradient(block.place_R, score_HRJ.sum(-1).T, to_q, block.key_J, to_k)

    def _part(self, x_QJ: Tensor, block: _Placed) -> Tensor:
        return x_QJ[block.queries] if self.of.summed else x_QJ[block.queries, : len(block.key_J)]

    def _all_heads(self, x_SRJ: Tensor, heads: int) -> Tensor:
        if self.head_S is None:
            return x_SRJ
        return x_SRJ.new_zeros(heads, *x_SRJ.shape[1:]).index_copy(0, self.head_S, x_SRJ)

    @staticmethod
    def _operands(block: _Placed, q_WHK: Tensor, k_TGK: Tensor) -> tuple[Tensor, Tensor]:
        """Returns queries and keys in float32 or wider: a product in 16 bits errs by percents after `exp`."""
        wide = torch.promote_types(q_WHK.dtype, torch.float32)
        return q_WHK[block.place_R].to(wide), grouped(k_TGK[block.key_J].to(wide), q_WHK.shape[1])

    def _weights(self, block: _Placed, q_WHK: Tensor, k_TGK: Tensor, lse_WH: Tensor) -> Tensor:
        """Returns the weights of a block in the heads that are asked for: [S, R, J]."""
        q_RHK, k_JHK = self._operands(block, q_WHK, k_TGK)
        lse_RH = lse_WH[block.place_R]
        if self.head_S is not None:
            q_RHK, k_JHK, lse_RH = (x.index_select(1, self.head_S) for x in (q_RHK, k_JHK, lse_RH))
        with torch.autocast(q_RHK.device.type, enabled=False):
            score_HRJ = torch.einsum("rhk,jhk->hrj", q_RHK, k_JHK) * q_RHK.shape[-1] ** -0.5
        return (score_HRJ - lse_RH.T[..., None]).exp().masked_fill(block.masked_RJ, 0)


def map_readers(
    maps: Sequence[KeyMap], row_W: np.ndarray | None, device: torch.device
) -> tuple[MapReader, ...]:
    """Returns the reader of each map. `row_W`: the output rows, ascending; None for all."""
    return tuple(
        MapReader(
            each, [_placed(block, each.row_Q, row_W, device) for block in each.blocks],
            None if each.heads is None else moved(np.asarray(each.heads, np.int64), device),
        )
        for each in maps
    )  # fmt: skip


def _placed(block: KeyBlock, row_Q: np.ndarray, row_W: np.ndarray | None, device: torch.device) -> _Placed:
    rows = row_Q[block.start : block.stop]
    place_R = rows if row_W is None else np.searchsorted(row_W, rows)
    masked_RJ = np.arange(len(block.key_J)) >= block.attended_I[:, None]
    return _Placed(
        slice(block.start, block.stop), moved(place_R, device), moved(block.key_J, device), moved(masked_RJ, device)
    )  # fmt: skip


def read_dense(reader: MapReader, weight_HWT: Tensor) -> Tensor:
    """Returns the map from the complete one: the plain form."""
    parts = []
    for block in reader.blocks:
        weight_HRJ = weight_HWT[:, block.place_R][..., block.key_J]
        if reader.head_S is not None:
            weight_HRJ = weight_HRJ[reader.head_S]
        weight_RJ = weight_HRJ.mean(0)
        if reader.of.summed:
            weight_RJ = weight_RJ.sum(-1, keepdim=True)
        parts.append(torch.nn.functional.pad(weight_RJ, (0, reader.of.width - weight_RJ.shape[1])))
    return torch.cat(parts) if parts else weight_HWT.new_zeros(0, reader.of.width)
