"""Public vision encoders: shapes from their configs, and a table that maps tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmkit.api.model_info import CLIP_MEAN, CLIP_STD, ImageSpec
from lmmkit.errors import UserError
from lmmkit.errors.weights import ARCHITECTURE, FEATURE_LAYER
from lmmkit.model.vision import VisionShape
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
SPARE = r"^post_layernorm\.|^head\.|position_ids$"
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True, kw_only=True)
class EncoderSource:
    """Describes a vision encoder from its files. `image_fit`: the treatment of images by its processor."""

    shape: VisionShape
    image_fit: str
    family: str

    @property
    def feature_layer(self) -> int:
        """Returns the index of the state that the connector reads."""
        return self.shape.feature_layer


def read_encoder(config: Config, folder: Path, *, feature_layer: int) -> EncoderSource:
    """Reads the encoder from a config (or from its `vision_config`).

    Raises `UserError` for an unknown family, and for settings that lmmkit does not support.
    """
    family = config.text("model_type")
    if family not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UserError(ARCHITECTURE.at(config.where, got=f"model_type {family!r}", known=known))
    size, patch = config.count("image_size"), config.count("patch_size")
    config.only(num_channels=3)
    does = _processor(folder, FAMILIES[family])
    side, width = size // patch, config.count("hidden_size")
    image = ImageSpec(
        size=size, grid=(side, side), width=width, mean=does["mean"], std=does["std"], resample=does["resample"]
    )  # fmt: skip
    clip = family == "clip_vision_model"
    depth = config.count("num_hidden_layers", most=BLOCKS)
    if not -depth - 1 <= feature_layer <= depth:
        got, layers = f"feature_layer {feature_layer} of {depth} layers", f"one of {-depth - 1} to {depth}"
        raise UserError(FEATURE_LAYER.at(config.where, got=got, layers=layers))
    heads = config.count("num_attention_heads")
    if width % heads:
        raise config.problem("num_attention_heads", heads, f"a divisor of the width {width}")
    shape = VisionShape(
        width=width, depth=depth, heads=heads, mlp=config.count("intermediate_size"), patch=patch, image=image,
        feature_layer=feature_layer, class_token=clip, pre_norm=clip, patch_bias=not clip,
        activation=config.one_of("hidden_act", ACTIVATIONS, "quick_gelu" if clip else "gelu_pytorch_tanh"),  # type: ignore[arg-type]
        norm_eps=config.number("layer_norm_eps", 1e-5 if clip else 1e-6),
    )  # fmt: skip
    return EncoderSource(shape=shape, image_fit=does["shape"], family=family)


RESAMPLE = {3: "bicubic", 2: "bilinear"}  # the numbers that Pillow uses
CLIP = {"mean": CLIP_MEAN, "std": CLIP_STD, "shape": "crop"}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "shape": "stretch"}
FAMILIES: dict[str, dict[str, Any]] = {"clip_vision_model": CLIP, "siglip_vision_model": HALF}


def _processor(folder: Path, habits: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the folder's image processor settings; `habits` gives the defaults."""
    for name, key in (("preprocessor_config.json", ""), ("processor_config.json", "image_processor")):
        if (folder / name).is_file():
            found = Config(read_json(folder / name, hint="Correct or remove the file."), str(folder / name))
            found = found.section(key) if key else found
            if not found.values:
                continue
            return {
                "mean": found.triple("image_mean", habits["mean"]), "std": found.triple("image_std", habits["std"]),
                "shape": _geometry(found) or habits["shape"], "resample": found.one_of("resample", RESAMPLE, 3),
            }  # fmt: skip
    return {**habits, "resample": "bicubic"}


def _geometry(config: Config) -> str | None:
    """Returns the `image_fit` of an image processor's config; None if the config does not define it."""
    if config.flag("do_pad", False):
        return "pad"
    if config.flag("do_center_crop", False):
        return "crop"
    size = config.values.get("size")
    return "stretch" if isinstance(size, Mapping) and size.get("height") else None
