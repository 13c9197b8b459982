"""The interface of a layer's attention: packed heads, rotary embedding, `AttentionFn`."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

Rotary = tuple[Tensor, Tensor]
"""(cos, sin), each [T, 1, K / 2]: the rotation of the pairs (k, k + K / 2) of each row."""

ALL = slice(None)


class Heads(NamedTuple):
    """Describes how a packed projection [T, (q + 2 kv) * size] splits into queries, keys and values."""

    q: int
    kv: int
    size: int

    def split(self, qkv_TC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns views of queries [T, H, K], keys and values [T, G, K]."""
        qkv_TAK = qkv_TC.unflatten(-1, (-1, self.size))
        return qkv_TAK[:, : self.q], qkv_TAK[:, self.q : -self.kv], qkv_TAK[:, -self.kv :]

    def queries_and_keys(self, qkv_TC: Tensor) -> Tensor:
        """Returns a view of queries and keys, which RoPE rotates: [T, H + G, K]."""
        return qkv_TC.unflatten(-1, (-1, self.size))[:, : -self.kv]


class LayerMap(Protocol):
    """Defines what an attention function knows of a map of attention weights that it returns."""

    @property
    def name(self) -> Hashable:
        """Returns what asks for it."""
        ...

    @property
    def layers(self) -> tuple[int, ...] | None:
        """Returns the layers that it is read in; None for all."""
        ...


@dataclass(frozen=True)
class AttentionFn:
    """Maps (qkv_TC, heads, rotary) to (out_WC, mass_R), and the maps that are asked for, one [Q, J] each. It may apply
    RoPE to `qkv_TC` in place.

    `rows` are the W output rows: all, or at least those whose states are read later. `call` takes `maps` too.
    """

    rows: Tensor | slice
    call: Callable[..., tuple[Tensor, ...]]
    maps: tuple[LayerMap, ...] = ()

    def __call__(self, qkv_TC: Tensor, heads: Heads, rotary: Rotary) -> tuple[Tensor, ...]:
        return self.call(qkv_TC, heads, rotary, *self.maps)

    def of_layer(self, n: int) -> AttentionFn:
        """Returns the function of one layer: with the maps that are read there."""
        here = tuple(each for each in self.maps if each.layers is None or n in each.layers)
        return self if here == self.maps else replace(self, maps=here)


def moved(array: np.ndarray, device: torch.device) -> Tensor:
    """Returns the array as a tensor on `device`; the host does not wait for the copy."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)


def grouped(x_THK: Tensor, heads: int) -> Tensor:
    """Repeats key/value heads to `heads` query heads, on the second to last dimension."""
    groups = x_THK.shape[-2]
    return x_THK if heads == groups else x_THK.repeat_interleave(heads // groups, dim=-2)


def ungrouped(x_THK: Tensor, groups: int) -> Tensor:
    """Sums the gradients of repeated key/value heads: the backward of `grouped`."""
    heads = x_THK.shape[-2]
    return x_THK if heads == groups else x_THK.unflatten(-2, (groups, heads // groups)).sum(-2)


def no_rotation(rows: int, heads: Heads, device: torch.device) -> Rotary:
    """Returns the table that leaves queries and keys as they are, for rows without rotary positions."""
    sin_T1K = torch.zeros(rows, 1, heads.size // 2, device=device)
    return torch.ones_like(sin_T1K), sin_T1K


def apply_rope(qkv_TC: Tensor, heads: Heads, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (q_THK, k_TGK, v_TGK), RoPE applied to queries and keys; the reference for `apply_rope_`."""
    q, k, v = heads.split(qkv_TC)
    return _apply_rope(q, *rotary), _apply_rope(k, *rotary), v


def _apply_rope(x_THK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x_THK.chunk(2, -1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1).to(x_THK)


def apply_rope_(x_THK: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Applies RoPE in place; `-sin` inverts it."""
    left, right = x_THK.chunk(2, -1)
    old_left = left.clone()
    left.mul_(cos).addcmul_(right, sin, value=-1)
    right.mul_(cos).addcmul_(old_left, sin)
