"""Any timm ViT behind the interface of `vision.py`."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Mapping, Sequence, Sized
from typing import Any, Protocol, cast, get_args

import torch
from torch import Tensor, nn

from lmmkit.api.batch import Patches
from lmmkit.api.model_info import ImageSpec, Resample
from lmmkit.errors import did_you_mean

_log = logging.getLogger("lmmkit")

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
