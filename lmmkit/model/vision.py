"""A vision encoder: a ViT that covers CLIP and SigLIP. timm's are behind the same interface (`timm_vit.py`).

`forward(pixels_ICXY) -> x_IND`: patch tokens from the chosen layer, grid row by grid row; class and
register tokens are removed. Layers after the chosen one are not built. `packed(patches) -> x_RD` is the same for
images of unlike sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmmkit.api.batch import Patches
from lmmkit.api.model_info import ImageSpec
from lmmkit.attention.backends import Backend
from lmmkit.attention.forest import blocks, expand
from lmmkit.attention.interface import Heads, moved, no_rotation
from lmmkit.attention.schedule import AttentionSpec
from lmmkit.model.layers import ACTIVATIONS, FusedLinear, Linear


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """Holds sizes and options of a ViT. `feature_layer` counts states: 0 the embeddings, -1 the last layer.

    CLIP: class token, norm before the blocks, quick GELU, no patch bias. SigLIP: none of these,
    tanh GELU, a patch bias.
    """

    width: int
    depth: int
    heads: int
    mlp: int
    patch: int
    image: ImageSpec
    feature_layer: int = -2
    class_token: bool = True
    pre_norm: bool = True
    patch_bias: bool = False
    activation: Literal["quick_gelu", "gelu", "gelu_tanh"] = "quick_gelu"
    norm_eps: float = 1e-5

    @property
    def built(self) -> int:
        """Returns the number of layers that the chosen state needs."""
        return self.feature_layer if self.feature_layer >= 0 else self.depth + 1 + self.feature_layer


class VisionBlock(nn.Module):
    """Computes a pre-norm transformer layer over sequences of tokens: I dense ones of N each, or packed ones."""

    def __init__(self, shape: VisionShape):
        super().__init__()
        width, gain = shape.width, (2 * shape.depth) ** -0.5
        self.activation = ACTIVATIONS[shape.activation]
        self.attention_norm = nn.LayerNorm(width, eps=shape.norm_eps)
        self.qkv = FusedLinear(width, {"q": width, "k": width, "v": width}, bias=True)
        self.out = Linear(width, width, bias=True, gain=gain)
        self.mlp_norm = nn.LayerNorm(width, eps=shape.norm_eps)
        self.up = Linear(width, shape.mlp, bias=True)
        self.down = Linear(shape.mlp, width, bias=True, gain=gain)

    def forward(self, x_IND: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns the output of the layer. `attend` maps queries, keys and values, [..., 3 D], to what attention
        gives."""
        return self.after(x_IND, attend(self.before(x_IND)))

    def before(self, x_IND: Tensor) -> Tensor:
        """Returns the input of attention, [I, N, 3 D]."""
        return self.qkv(self.attention_norm(x_IND))

    def after(self, x_IND: Tensor, out_IND: Tensor) -> Tensor:
        """Returns the output of the layer, from its input `x_IND` and the attention output `out_IND`."""
        x_IND = x_IND + self.out(out_IND)
        return x_IND + self.down(self.activation(self.up(self.mlp_norm(x_IND))))


class ViT(nn.Module):
    """Computes the ViT that is implemented here.

    From scratch, positions start as sines and cosines of grid row and column (a random table needs many
    steps to find which tokens are neighbours); the class token is drawn from N(0, 0.02^2).
    """

    def __init__(self, shape: VisionShape, backend: Backend):
        super().__init__()
        self.shape, self.image, self.backend = shape, shape.image, backend
        width, first = shape.width, int(shape.class_token)
        self.patch = nn.Conv2d(3, width, shape.patch, shape.patch, bias=shape.patch_bias)
        self.class_token = nn.Parameter(torch.empty(first, width))
        self.position = nn.Parameter(torch.empty(first + shape.image.tokens, width))
        self.pre_norm = nn.LayerNorm(width, eps=shape.norm_eps) if shape.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(VisionBlock(shape) for _ in range(shape.built))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.zeros_(self.position)
        with torch.no_grad():
            self.position[len(self.class_token) :] = 0.5 * sincos(self.image.grid, self.shape.width)

    def forward(self, pixels_ICXY: Tensor) -> Tensor:
        """Returns the patch tokens, [I, N, D]."""
        patches_IND = self.patch(pixels_ICXY).flatten(2).transpose(1, 2)
        first_I1D = self.class_token.expand(len(patches_IND), -1, -1)
        x_IND = self.pre_norm(torch.cat([first_I1D, patches_IND], 1) + self.position)
        for block in self.blocks:
            x_IND = block(x_IND, self._dense)
        return x_IND[:, self.class_token.shape[0] :]

    def _dense(self, qkv_IND: Tensor) -> Tensor:
        """Returns attention over I sequences of one length."""
        q, k, v = (part.unflatten(-1, (self.shape.heads, -1)) for part in qkv_IND.chunk(3, -1))
        return self.backend.dense(q, k, v).flatten(2)

    def packed(self, images: Patches) -> Tensor:
        """Returns the patch tokens of images of any size, image by image, [R, D]: one pass without padding.

        Positions are interpolated to the grid of each image.
        """
        first, patch_RF = len(self.class_token), images.patch_RF
        patches_RD = F.linear(patch_RF, self.patch.weight.flatten(1), self.patch.bias)
        position = {grid: self._positions(grid) for grid in dict.fromkeys(images.grids)}
        parts = [
            torch.cat([self.class_token, x_ND]) + position[grid]
            for grid, x_ND in zip(images.grids, patches_RD.split(images.lengths), strict=True)
        ]
        x_TD = self.pre_norm(torch.cat(parts))
        lengths = np.array([len(part) for part in parts])
        heads = Heads(self.shape.heads, self.shape.heads, self.shape.width // self.shape.heads)
        attend = within_images(lengths, heads, self.backend, x_TD.device)
        for block in self.blocks:
            x_TD = block(x_TD, attend)
        return without_first(x_TD, lengths, first)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Returns the positions of an image of `grid` tokens, those of class tokens first."""
        first, width = len(self.class_token), self.shape.width
        plane_1DXY = self.position[first:].T.reshape(1, width, *self.image.grid)
        if grid != self.image.grid:
            plane_1DXY = F.interpolate(plane_1DXY, grid, mode="bicubic", antialias=True)
        return torch.cat([self.position[:first], plane_1DXY[0].flatten(1).T])


def among_images(lengths: np.ndarray) -> AttentionSpec:
    """Returns the attention of packed images of these numbers of tokens, each onto itself; on the host."""
    none_T = torch.zeros(int(lengths.sum()), dtype=torch.bool)
    return AttentionSpec(blocks(lengths), none_T, torch.empty(0, dtype=torch.int64))


def within_images(
    lengths: np.ndarray, heads: Heads, backend: Backend, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Returns what maps the packed queries, keys and values of such images, [T, 3 D], to what attention gives."""
    run = backend.prepare(among_images(lengths), device)
    rotary = no_rotation(int(lengths.sum()), heads, device)
    return lambda qkv_TC: run(qkv_TC, heads, rotary)[0]


def without_first(x_TD: Tensor, lengths: np.ndarray, first: int) -> Tensor:
    """Returns packed tokens without the `first` ones of each image, which are no patches."""
    if not first:
        return x_TD
    ends = lengths.cumsum()
    return x_TD[moved(expand(ends - lengths + first, lengths - first), x_TD.device)]


def sincos(grid: tuple[int, int], width: int) -> Tensor:
    """Returns the sines and cosines of each token's grid row and column at D / 4 wavelengths, [N, D]."""
    wave = 1e4 ** -(torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    angles = [place.flatten()[:, None] * wave for place in (row, column)]
    table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], 1)
    return nn.functional.pad(table, (0, width - table.shape[1]))
