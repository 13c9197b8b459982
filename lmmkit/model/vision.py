"""Vision encoders: a ViT that covers CLIP and SigLIP, and any timm ViT behind one interface.

`forward(pixels_ICXY) -> x_IND`: patch tokens from the chosen layer, grid row by grid row; class and
register tokens are removed. Layers after the chosen one are not built. `packed(patches) -> x_RD` is the same for
images of unlike sizes.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmmkit.api.batch import Patches
from lmmkit.api.model_info import ImageSpec, Resample
from lmmkit.attention.backends import Backend
from lmmkit.attention.forest import blocks, expand
from lmmkit.attention.interface import Heads, moved, no_rotation
from lmmkit.attention.schedule import AttentionSpec
from lmmkit.errors import did_you_mean
from lmmkit.model.layers import ACTIVATIONS, FusedLinear, Linear

_log = logging.getLogger("lmmkit")


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
        attend = self._segments(lengths, x_TD.device)
        for block in self.blocks:
            x_TD = block(x_TD, attend)
        if not first:
            return x_TD
        ends = lengths.cumsum()
        return x_TD[moved(expand(ends - lengths + first, lengths - first), x_TD.device)]

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Returns the positions of an image of `grid` tokens, those of class tokens first."""
        first, width = len(self.class_token), self.shape.width
        plane_1DXY = self.position[first:].T.reshape(1, width, *self.image.grid)
        if grid != self.image.grid:
            plane_1DXY = F.interpolate(plane_1DXY, grid, mode="bicubic", antialias=True)
        return torch.cat([self.position[:first], plane_1DXY[0].flatten(1).T])

    def _segments(self, lengths: np.ndarray, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Returns attention over packed sequences of these lengths, each onto itself."""
        heads = Heads(self.shape.heads, self.shape.heads, self.shape.width // self.shape.heads)
        run = self.backend.prepare(among_images(lengths), device)
        rotary = no_rotation(int(lengths.sum()), heads, device)
        return lambda qkv_TC: run(qkv_TC, heads, rotary)[0]


def among_images(lengths: np.ndarray) -> AttentionSpec:
    """Returns the attention of packed images of these numbers of tokens, each onto itself; on the host."""
    none_T = torch.zeros(int(lengths.sum()), dtype=torch.bool)
    return AttentionSpec(blocks(lengths), none_T, torch.empty(0, dtype=torch.int64))


def sincos(grid: tuple[int, int], width: int) -> Tensor:
    """Returns the sines and cosines of each token's grid row and column at D / 4 wavelengths, [N, D]."""
    wave = 1e4 ** -(torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    angles = [place.flatten()[:, None] * wave for place in (row, column)]
    table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], 1)
    return nn.functional.pad(table, (0, width - table.shape[1]))


MOST_BLOCKS = 256  # in a timm model; each is built, on meta, for the check
MOST = 2**20  # for any other size


def _plain(value: object, most: int) -> bool:
    return isinstance(value, str | None) or (isinstance(value, int | float) and abs(value) <= most)


class TimmModel(Protocol):
    """Defines what is used here of timm's ViTs, which share no base class."""

    blocks: Sized
    embed_dim: int
    patch_embed: Any  # its `img_size` and `grid_size` are pairs

    def prune_intermediate_layers(
        self, indices: list[int], *, prune_norm: bool, prune_head: bool
    ) -> object: ...

    def forward_intermediates(
        self, x: Tensor, *, indices: list[int], norm: bool, output_fmt: str, intermediates_only: bool
    ) -> Sequence[Tensor]: ...


class TimmViT(nn.Module):
    """Wraps any timm ViT that has `forward_intermediates`, cut after the chosen layer."""

    def __init__(self, model: TimmModel, *, image: ImageSpec, feature_layer: int):
        super().__init__()
        self.image = image
        depth = len(model.blocks)
        state = feature_layer if feature_layer >= 0 else depth + 1 + feature_layer
        if not 1 <= state <= depth:
            raise ValueError(f"feature_layer {feature_layer} is none of 1 to {depth} or -{depth} to -1")
        self.index = state - 1
        model.prune_intermediate_layers([self.index], prune_norm=True, prune_head=True)
        self.model = model

    def forward(self, pixels_ICXY: Tensor) -> Tensor:
        """Returns the patch tokens, [I, N, D]."""
        (x_IND,) = self.model.forward_intermediates(
            pixels_ICXY, indices=[self.index], norm=False, output_fmt="NLC", intermediates_only=True
        )
        return x_IND

    def packed(self, images: Patches) -> Tensor:
        """Returns the patch tokens of images of any size, image by image, [R, D]: one pass for each size. The model
        interpolates its positions (timm's `dynamic_img_size`)."""
        found: dict[int, Tensor] = {}
        for grid in dict.fromkeys(images.grids):
            alike = [i for i, other in enumerate(images.grids) if other == grid]
            pixels_ICXY = torch.stack([images.pixels(i) for i in alike])
            x_IND = self.forward(pixels_ICXY)  # not by hooks, which gather a sharded encoder for each size
            found |= dict(zip(alike, x_IND, strict=True))
        return torch.cat([found[i] for i in range(len(found))])


@functools.cache  # so that the warning appears once
def resample_of(interpolation: str) -> Resample:
    """Returns the filter for an interpolation of timm's: bicubic, with a warning, for one that lmmkit lacks."""
    if interpolation in get_args(Resample):
        return cast(Resample, interpolation)
    _log.warning(
        "timm resizes images of this encoder by `%s`, which lmmkit lacks: `bicubic` is used. "
        "`model.vision.resample` selects another filter.", interpolation,
    )  # fmt: skip
    return "bicubic"


def open_timm(
    name: str, *, feature_layer: int, image_size: int | None, args: Mapping[str, object],
    mean: tuple[float, float, float] | None = None, std: tuple[float, float, float] | None = None,
    resample: Resample | None = None,
) -> TimmViT:  # fmt: skip
    """Returns a timm ViT by name, with timm's initial values; on the meta device, if that is the default.

    Args:
        name: from timm's registry, with or without the tag of its weights; never a hub name.
        feature_layer: the state to read.
        image_size: side of the image in pixels; None for timm's.
        args: other arguments of timm's constructor; plain values.
        mean: of RGB in 0..1; None for timm's.
        std: of RGB in 0..1; None for timm's.
        resample: filter that resizes images; None for timm's.

    Raises:
        ValueError: no such ViT, arguments that do not describe a model's shape, a size that does not fit.
    """
    import timm
    from timm.data.config import resolve_model_data_config
    from timm.models import build_model_with_cfg

    if not timm.is_model(name.partition(".")[0]):
        raise ValueError(f"timm knows no such model. {did_you_mean(name, timm.list_models('vit*'))}")
    loading = {n for f in (timm.create_model, build_model_with_cfg) for n in inspect.signature(f).parameters}
    for key, value in args.items():
        parts = value if isinstance(value, list | tuple) else [value]
        most = MOST_BLOCKS if key.startswith("depth") else MOST
        if key in loading or not all(_plain(part, most) for part in parts):
            raise ValueError(f"{key} = {value!r} is no argument of a model's shape")
    sized = {"img_size": image_size} if image_size is not None else {}
    options: dict[str, Any] = {**args, **sized, "num_classes": 0}
    try:
        model = cast(TimmModel, timm.create_model(name, pretrained=False, **options))
        patches = model.patch_embed
        size, side, patch = patches.img_size[-1], patches.grid_size[-1], patches.patch_size[-1]
    except Exception as error:  # a constructor may raise any error for impossible sizes
        raise ValueError(f"timm: {error}") from error
    if not side or size % side or size // side != patch:
        raise ValueError(f"image_size {size} is no multiple of its patches of {patch}")
    config = resolve_model_data_config(model)
    image = ImageSpec(
        size=size, grid=tuple(patches.grid_size), width=model.embed_dim, mean=mean or tuple(config["mean"]),
        std=std or tuple(config["std"]),
        resample=resample or resample_of(config["interpolation"]),
    )  # fmt: skip
    return TimmViT(model, image=image, feature_layer=feature_layer)
