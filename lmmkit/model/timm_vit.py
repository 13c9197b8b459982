"""Any timm ViT behind the interface of `vision.py`.

Blocks of timm's plain ViT take a mask, and hand it to torch's `scaled_dot_product_attention`. In place of a mask they
get `WithinImages`, which computes that call instead: so images of unlike sizes share one pass, in timm's own code.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmmkit.api.batch import Patches
from lmmkit.api.model_info import ImageSpec, Resample
from lmmkit.attention.backends import Backend
from lmmkit.attention.eager import Eager
from lmmkit.attention.interface import Heads
from lmmkit.errors import did_you_mean
from lmmkit.model.vision import within_images, without_first

_log = logging.getLogger("lmmkit")

MOST_BLOCKS = 256  # in a timm model; each is built, on meta, for the check
MOST = 2**20  # for any other size
PATCH_DROP = "patch_drop_rate"  # an argument that makes an image have fewer tokens than patches


def _plain(value: object, most: int) -> bool:
    return isinstance(value, str | None) or (isinstance(value, int | float) and abs(value) <= most)


class TimmModel(Protocol):
    """Defines what is used here of timm's ViTs, which share no base class."""

    blocks: Sequence[Any]
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
        # not by hooks, which gather a sharded encoder for each size
        return torch.cat(_by_size(images, self.forward))


class PackedTimmViT(TimmViT):
    """Wraps a timm ViT whose blocks take images of unlike sizes at once: one of which `why_apart` says nothing."""

    def __init__(self, model: TimmModel, *, image: ImageSpec, feature_layer: int, backend: Backend):
        super().__init__(model, image=image, feature_layer=feature_layer)
        self.backend = backend

    @property
    def heads(self) -> Heads:
        """Returns the heads of each block."""
        attention = self.model.blocks[0].attn
        return Heads(attention.num_heads, attention.num_heads, attention.head_dim)

    def packed(self, images: Patches) -> Tensor:
        """Returns the same as `TimmViT.packed`, from one pass without padding."""
        model = cast(Any, self.model)
        parts = _by_size(images, lambda x_ICXY: model.norm_pre(model._pos_embed(model.patch_embed(x_ICXY))))
        x_1TD, lengths = torch.cat(parts)[None], np.array([len(part) for part in parts])
        attend = within_images(lengths, self.heads, self.backend, x_1TD.device)
        for block in model.blocks:
            x_1TD = block(x_1TD, attn_mask=WithinImages(attend))
        return without_first(x_1TD[0], lengths, model.num_prefix_tokens)


def _by_size(images: Patches, encode: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Returns the tokens of each image, [N, D]; `encode` gets images of one size at a time, [I, 3, X, Y]."""
    found: dict[int, Tensor] = {}
    for grid in dict.fromkeys(images.grids):
        alike = [i for i, other in enumerate(images.grids) if other == grid]
        found |= dict(zip(alike, encode(torch.stack([images.pixels(i) for i in alike])), strict=True))
    return [found[i] for i in range(len(found))]


class WithinImages:
    """Takes the place of a mask: torch hands it the call that has it as one (`__torch_function__`)."""

    def __init__(self, attend: Callable[[Tensor], Tensor]):
        self.attend = attend

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Returns attention within each image, [1, H, T, K]. Anything else is refused, with a `TypeError` of torch."""
        asked = dict(kwargs or {})
        mask = asked.pop("attn_mask", None)
        if func is not F.scaled_dot_product_attention or not isinstance(mask, cls) or any(asked.values()):
            return NotImplemented
        *_, v_1HTK = args
        qkv_TC = torch.cat([x_1HTK[0].transpose(0, 1).to(v_1HTK) for x_1HTK in args], 1).flatten(1)
        return mask.attend(qkv_TC).unflatten(1, (v_1HTK.shape[1], -1)).transpose(0, 1)[None]


def why_apart(model: TimmModel) -> str:
    """Returns why images of unlike sizes need a pass for each size in a timm model; empty if they do not."""
    return next(_reasons_apart(model), "")


def _reasons_apart(model: TimmModel) -> Iterator[str]:
    from timm.layers.attention import Attention
    from timm.layers.drop import DropPath
    from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer

    if getattr(type(model), "forward_intermediates", None) is not VisionTransformer.forward_intermediates:
        yield f"{type(model).__name__} is no plain ViT of timm"
        return
    for block in model.blocks:
        if type(block) not in (Block, ResPostBlock) or type(block.attn) is not Attention:
            yield f"{type(block).__name__} with {type(getattr(block, 'attn', block)).__name__} is no plain block"
            return
        attention = block.attn
        if attention.head_dim % 2:
            yield f"heads of {attention.head_dim} values, an odd number"
        if not attention.fused_attn:
            yield "TIMM_FUSED_ATTN is 0"
        if attention.attn_drop.p:
            yield "attention with dropout"
        if any(isinstance(part, DropPath) for part in block.children()):
            yield "stochastic depth, which drops whole images"


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
    resample: Resample | None = None, backend: Backend | None = None,
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
        backend: of attention within packed images; None computes it plainly.

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
        if key in (*loading, PATCH_DROP) or not all(_plain(part, most) for part in parts):
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
    if why_apart(model):
        return TimmViT(model, image=image, feature_layer=feature_layer)
    return PackedTimmViT(model, image=image, feature_layer=feature_layer, backend=backend or Eager())
