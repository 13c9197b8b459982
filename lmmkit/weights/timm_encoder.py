"""Reads timm's vision transformers from a folder in its hub layout, or from a weights file with timm's names.

    config.json (architecture, pretrained_cfg, model_args)  model.safetensors

It reads only from disk, and never contacts a hub.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lmmkit.api.sample import FitName
from lmmkit.model.timm_vit import TimmViT, resample_of
from lmmkit.recipe import NO_WEIGHTS, VisionTimm
from lmmkit.weights.config import Config
from lmmkit.weights.model_folder import unique_tensors
from lmmkit.weights.name_maps import Table
from lmmkit.weights.tensor_reader import Stored

POSITIONS = "pos_embed"
# Tensors after the last block. They are pruned, because no earlier state needs them.
BEHIND = r"^(norm|fc_norm|head|head_dist|attn_pool)\."
# Dropout rates for training, which do not change the shape.
RATES = (
    "drop_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
)


@dataclass(frozen=True, kw_only=True)
class TimmSource:
    """Describes a timm encoder from its folder or a recipe.

    `resized`: the image size differs from that of the weights, so the position table must be resampled.
    """

    section: VisionTimm
    image_fit: FitName = "crop"
    resized: bool = False


def read_timm(config: Config, feature_layer: int) -> TimmSource:
    """Reads the encoder from a hub folder's config. Raises `UserError` for values that are not supported."""
    found = config.section("pretrained_cfg")
    found = found if found.values else config  # the format of folders before 2023
    args = {k: v for k, v in config.section("model_args").values.items() if k not in RATES}
    given = Config(args, f"{config.where}: model_args")
    given.only(in_chans=3)
    size = args.get("img_size") or (found.values.get("input_size") or [None])[-1]
    sides = size if isinstance(size, list) else [size]
    if any(type(side) is not (type(None) if size is None else int) or side != sides[0] for side in sides):
        raise config.problem("model_args.img_size", size, "one whole number, the side of a square")
    interpolation = found.values.get("interpolation")
    ours = ("img_size", "in_chans", "num_classes")  # set elsewhere, or not built
    section = VisionTimm(
        timm=config.text("architecture"), weights=NO_WEIGHTS, feature_layer=feature_layer,
        args={key: value for key, value in args.items() if key not in ours}, image_size=sides[0],
        mean=found.triple("mean", None), std=found.triple("std", None),
        resample=None if interpolation is None else resample_of(str(interpolation)[:40]),
    )  # fmt: skip
    stretched = found.values.get("crop_mode") == "stretch"
    return TimmSource(section=section, image_fit="stretch" if stretched else "crop")


def table(module: nn.Module) -> Table:
    """Returns the table from names in a `TimmViT` to timm's: only the wrapper's prefix differs."""
    return tuple((name, name.removeprefix("model.")) for name in unique_tensors(module))


def spare(module: nn.Module) -> str:
    """Returns a pattern for names that the file may contain and the module does not have: heads, and blocks
    after the feature layer."""
    assert isinstance(module, TimmViT)
    built = "|".join(map(str, range(len(module.model.blocks))))
    return rf"{BEHIND}|^blocks\.(?!({built})\.)"


def resampled(module: nn.Module, stored: Mapping[str, Stored], prefix: str) -> dict[str, Stored]:
    """Returns the stored tensors with the position table resampled to the module's grid by timm."""
    assert isinstance(module, TimmViT)
    own = unique_tensors(module).get(f"model.{POSITIONS}")
    old = stored.get(prefix + POSITIONS)
    out = dict(stored)
    if own is None or old is None or len(old.shape) != 3:
        return out
    model: Any = module.model
    first = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 1)
    if math.isqrt(max(old.shape[1] - first, 0)) ** 2 + first == old.shape[1] != own.shape[1]:

        def read() -> Tensor:
            from timm.layers.pos_embed import resample_abs_pos_embed

            grid = list(model.patch_embed.grid_size)
            return resample_abs_pos_embed(old.read(), new_size=grid, num_prefix_tokens=first)

        out[prefix + POSITIONS] = replace(old, shape=tuple(own.shape), read=read)
    return out
