"""What a layer's attention is handed and hands back: packed heads, their turning, an `AttentionFn`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Rotary = tuple[Tensor, Tensor]
"""(cos, sin), each [T, 1, K / 2]: by how much each row's pairs (k, k + K / 2) are turned."""

ALL = slice(None)


class Heads(NamedTuple):
    """How a packed projection [T, (q + 2 kv) * size] falls into queries, keys and values."""

    q: int
    kv: int
    size: int

    def split(self, qkv_TC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of it: [T, H, K], and [T, G, K] twice."""
        qkv_TAK = qkv_TC.unflatten(-1, (-1, self.size))
        return qkv_TAK[:, : self.q], qkv_TAK[:, self.q : -self.kv], qkv_TAK[:, -self.kv :]

    def queries_and_keys(self, qkv_TC: Tensor) -> Tensor:
        """A view of what positions turn: queries and keys, [T, H + G, K]."""
        return qkv_TC.unflatten(-1, (-1, self.size))[:, : -self.kv]


@dataclass(frozen=True)
class AttentionFn:
    """(qkv_TC, heads, turn) -> (out_WC, mass_R). The projection is the call's own: it may turn it in place.

    `rows` are the W rows that come out: all, or those whose states somebody reads.
    """

    rows: Tensor | slice
    call: Callable[[Tensor, Heads, Rotary], tuple[Tensor, Tensor]]

    def __call__(self, qkv_TC: Tensor, heads: Heads, rotary: Rotary) -> tuple[Tensor, Tensor]:
        return self.call(qkv_TC, heads, rotary)


def grouped(x_THK: Tensor, heads: int) -> Tensor:
    """Key/value heads repeated to `heads` query heads, on the last but one dimension."""
    groups = x_THK.shape[-2]
    return x_THK if heads == groups else x_THK.repeat_interleave(heads // groups, dim=-2)


def ungrouped(x_THK: Tensor, groups: int) -> Tensor:
    """Gradients of repeated key/value heads, summed: the way back of `grouped`."""
    heads = x_THK.shape[-2]
    return x_THK if heads == groups else x_THK.unflatten(-2, (groups, heads // groups)).sum(-2)


def apply_rope(qkv_TC: Tensor, heads: Heads, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
    """(q_THK, k_TGK, v_TGK), queries and keys turned to their positions; the plain twin of `turn_`."""
    q, k, v = heads.split(qkv_TC)
    return _apply_rope(q, *rotary), _apply_rope(k, *rotary), v


def _apply_rope(x_THK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x_THK.chunk(2, -1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1).to(x_THK)


def apply_rope_(x_THK: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turns where it lies; with `-sin`, back."""
    left, right = x_THK.chunk(2, -1)
    old_left = left.clone()
    left.mul_(cos).addcmul_(right, sin, value=-1)
    right.mul_(cos).addcmul_(old_left, sin)
