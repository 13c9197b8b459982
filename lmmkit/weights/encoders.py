"""Public vision encoders: recipe sections from their configs, and a table that maps tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lmmkit.api.model_info import CLIP_MEAN, CLIP_STD
from lmmkit.api.sample import FitName
from lmmkit.errors import UserError
from lmmkit.errors.weights import ARCHITECTURE, FEATURE_LAYER
from lmmkit.recipe import VisionScratch
from lmmkit.runs.files import read_json
from lmmkit.weights.config import BLOCKS, Config
from lmmkit.weights.name_maps import Table

VIT: Table = (
    ("class_token[0]", "embeddings.class_embedding"),
    ("patch.weight", "embeddings.patch_embedding.weight"),
    ("patch.bias", "embeddings.patch_embedding.bias"),
    ("position", "embeddings.position_embedding.weight"),
    ("pre_norm.weight", "pre_layrnorm.weight"),
    ("pre_norm.bias", "pre_layrnorm.bias"),
    *(
        (f"blocks.{{n}}.{ours}.{kind}{part}", f"encoder.layers.{{n}}.{theirs}.{kind}")
        for kind in ("weight", "bias")
        for ours, part, theirs in (
            ("attention_norm", "", "layer_norm1"),
            ("qkv", "[q]", "self_attn.q_proj"),
            ("qkv", "[k]", "self_attn.k_proj"),
            ("qkv", "[v]", "self_attn.v_proj"),
            ("out", "", "self_attn.out_proj"),
            ("mlp_norm", "", "layer_norm2"),
            ("up", "", "mlp.fc1"),
            ("down", "", "mlp.fc2"),
        )
    ),
)
# Tensors after the last layer, and a table of position numbers in old folders.
SPARE_ENCODER = r"^post_layernorm\.|^head\.|position_ids$"
HIDDEN_ACTS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
RESAMPLE = {3: "bicubic", 2: "bilinear"}  # the numbers that Pillow uses


@dataclass(frozen=True, kw_only=True)
class EncoderFamily:
    """Describes a family: the fields of `VisionScratch` that its name implies, and the defaults of its
    config and of its image processor."""

    fixed: Mapping[str, Any]
    hidden_act: str
    norm_eps: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_fit: FitName


ENCODERS = {
    "clip_vision_model": EncoderFamily(
        fixed={"class_token": True, "pre_norm": True, "patch_bias": False}, hidden_act="quick_gelu",
        norm_eps=1e-5, mean=CLIP_MEAN, std=CLIP_STD, image_fit="crop",
    ),
    "siglip_vision_model": EncoderFamily(
        fixed={"class_token": False, "pre_norm": False, "patch_bias": True}, hidden_act="gelu_pytorch_tanh",
        norm_eps=1e-6, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), image_fit="stretch",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EncoderSource:
    """Describes a vision encoder from its files. `image_fit`: the treatment of images by its processor."""

    section: VisionScratch
    image_fit: FitName


def read_encoder(config: Config, folder: Path, *, feature_layer: int) -> EncoderSource:
    """Reads the encoder from a config (or from its `vision_config`).

    Raises `UserError` for an unknown family, and for settings that lmmkit does not support.
    """
    name = config.text("model_type")
    if name not in ENCODERS:
        known = ", ".join(sorted(ENCODERS))
        raise UserError(ARCHITECTURE.at(config.where, got=f"model_type {name!r}", known=known))
    family = ENCODERS[name]
    config.only(num_channels=3)
    width, heads = config.count("hidden_size"), config.count("num_attention_heads")
    if width % heads:
        raise config.problem("num_attention_heads", heads, f"a divisor of the width {width}")
    depth = config.count("num_hidden_layers", most=BLOCKS)
    if not -depth - 1 <= feature_layer <= depth:
        got, layers = f"feature_layer {feature_layer} of {depth} layers", f"one of {-depth - 1} to {depth}"
        raise UserError(FEATURE_LAYER.at(config.where, got=got, layers=layers))
    image_fit, pixels = _processor(folder, family, config.count("image_size"))
    section = VisionScratch(
        width=width, depth=depth, heads=heads, mlp=config.count("intermediate_size"),
        patch=config.count("patch_size"), image_size=config.count("image_size"), feature_layer=feature_layer,
        activation=cast(Any, config.one_of("hidden_act", HIDDEN_ACTS, family.hidden_act)),
        norm_eps=config.number("layer_norm_eps", family.norm_eps), **family.fixed, **pixels,
    )  # fmt: skip
    return EncoderSource(section=section, image_fit=image_fit)


def family_of(encoder: object) -> str | None:
    """Returns the family whose fixed fields an encoder has; None if there is none."""
    fits = (
        name
        for name, family in ENCODERS.items()
        if all(getattr(encoder, field) == value for field, value in family.fixed.items())
    )
    return next(fits, None)


def _processor(folder: Path, family: EncoderFamily, side: int) -> tuple[FitName, dict[str, Any]]:
    """Returns the folder's `image_fit`, and mean, std and resampling of its image processor. `side`: of an image.

    Raises `UserError` for steps of the processor that lmmkit does not have.
    """
    for name, key in (("preprocessor_config.json", ""), ("processor_config.json", "image_processor")):
        if (folder / name).is_file():
            found = Config(read_json(folder / name, hint="Correct or remove the file."), str(folder / name))
            found = found.section(key) if key else found
            if not found.values:
                continue
            _require_known_steps(found, side)
            mean, std = found.triple("image_mean", family.mean), found.triple("image_std", family.std)
            resample = found.one_of("resample", RESAMPLE, 3)
            return _geometry(found) or family.image_fit, {"mean": mean, "std": std, "resample": resample}
    return family.image_fit, {"mean": family.mean, "std": family.std}


def _require_known_steps(config: Config, side: int) -> None:
    """Raises `UserError` unless images are resized to the encoder's size, put in 0..1 and normalised."""
    config.only(do_resize=True, do_rescale=True, do_normalize=True)
    if abs(255 * config.number("rescale_factor", 1 / 255) - 1) > 1e-3:
        raise config.lacking("rescale_factor", config.values["rescale_factor"], "1 / 255")
    for key in ("size", "crop_size"):
        value = config.values.get(key)
        sides = value.values() if isinstance(value, Mapping) else [value]
        if any(type(each) is int and each != side for each in sides):
            raise config.lacking(key, value, f"{side} pixels a side, as in the encoder's config")


def _geometry(config: Config) -> FitName | None:
    """Returns the `image_fit` of an image processor's config; None if the config does not define it."""
    if config.flag("do_pad", False):
        return "pad"
    if config.flag("do_center_crop", False):
        return "crop"
    size = config.values.get("size")
    return "stretch" if isinstance(size, Mapping) and size.get("height") else None
