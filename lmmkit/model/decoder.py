"""A decoder from the LLaMA family over the packed rows of a forest."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lmmkit.attention.interface import AttentionFn, Heads
from lmmkit.model.layers import Block, Linear, RMSNorm, SelfAttention, SwiGLU
from lmmkit.model.rope import Rope, rope_angles

_UNSCALED = Rope()
NOTHING: Mapping[Any, Tensor] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Holds the sizes of a decoder. `head_size` need not be width / heads; `context` is the longest path."""

    vocab: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    context: int
    rope: Rope = _UNSCALED
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = False


class Embedding(nn.Embedding):
    """Holds token embeddings, drawn from N(0, 1 / width): of the same scale as what the blocks add."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.embedding_dim**-0.5)


class Decoder(nn.Module):
    """Computes embeddings, blocks, final norm, head. Rows may have any order; attention connects them."""

    def __init__(self, shape: DecoderShape):
        super().__init__()
        self.shape = shape
        gain = (2 * shape.depth) ** -0.5  # keeps the residual stream's size at any depth
        self.embed = Embedding(shape.vocab, shape.width)
        self.blocks = nn.ModuleList(_block(shape, gain) for _ in range(shape.depth))
        self.norm = RMSNorm(shape.width, shape.norm_eps)
        self.head = Linear(shape.width, shape.vocab, bias=False)
        self.tie()

    def tie(self) -> None:
        """Ties the head to the embedding if `shape.tied`. Repeat after `to_empty`, which unties them."""
        if self.shape.tied:
            self.head.weight = self.embed.weight

    def forward(
        self,
        x_TD: Tensor,
        pos_T: Tensor,
        attention_fns: Sequence[AttentionFn],
        inner: Mapping[int, Tensor] = NOTHING,
    ) -> tuple[Tensor, Tensor, dict[int, Tensor], dict[Hashable, Tensor]]:
        """Returns the states after the final norm [W, D], of the output rows of the last attention function;
        the mass of each layer [L, R], float32; the states of the rows `inner[n]` after n blocks, by n; and by name
        the maps that attention functions return, the mean over their layers.

        The states are read between blocks, so a block that is recomputed need not save them.
        """
        shape = self.shape
        cos, sin = rope_angles(pos_T, shape.head_size, shape.rope)
        rotary = (cos.to(x_TD.dtype), sin.to(x_TD.dtype))
        masses, states = [], {}
        maps: dict[Hashable, tuple[Tensor, int]] = {}
        for n, (block, attention_fn) in enumerate(zip(self.blocks, attention_fns, strict=True)):
            if n in inner:
                states[n] = x_TD[inner[n]]
            x_TD, mass_R, *found = block(x_TD, rotary, attention_fn)
            masses.append(mass_R)
            for each, map_QJ in zip(attention_fn.maps, found, strict=True):
                before = maps.get(each.name)
                maps[each.name] = (map_QJ, 1) if before is None else (before[0] + map_QJ, before[1] + 1)
        means = {name: sum_QJ / layers for name, (sum_QJ, layers) in maps.items()}
        return self.norm(x_TD), torch.stack(masses), states, means


def _block(shape: DecoderShape, gain: float) -> Block:
    attention = SelfAttention(
        shape.width, Heads(shape.heads, shape.kv_heads, shape.head_size),
        qkv_bias=shape.qkv_bias, qk_norm=shape.qk_norm, norm_eps=shape.norm_eps, gain=gain,
    )  # fmt: skip
    mlp = SwiGLU(shape.width, shape.mlp, gain=gain)
    return Block(attention, mlp, width=shape.width, norm_eps=shape.norm_eps)
