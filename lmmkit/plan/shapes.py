"""Turns recipe sections into shapes, before any weights exist. Fields of one name are copied."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch

from lmmkit.api.model_info import Dims, ImageSpec
from lmmkit.attention.interface import Heads
from lmmkit.attention.trial import Backend
from lmmkit.errors import UserError
from lmmkit.errors.plan import TIMM, VOCAB
from lmmkit.model.decoder import DecoderShape
from lmmkit.model.rope import Rope
from lmmkit.model.timm_vit import PackedTimmViT, TimmViT, open_timm, why_apart
from lmmkit.model.vision import VisionShape
from lmmkit.recipe import Recipe, TextScratch, Vision, VisionScratch, VisionTimm

NO_IMAGE = ImageSpec(size=0, grid=(0, 0), width=0)  # for a text-only model


def _fields(section: object, shape: type, *, but: tuple[str, ...]) -> dict[str, Any]:
    """Returns the fields of a shape from the section's fields of the same names, without those in `but`."""
    return {f.name: getattr(section, f.name) for f in fields(shape) if f.name not in but}


def vision_shape(vision: VisionScratch) -> VisionShape:
    """Returns the shape of an encoder whose sizes are in the recipe."""
    side = vision.image_size // vision.patch
    image = ImageSpec(
        size=vision.image_size,
        grid=(side, side),
        **_fields(vision, ImageSpec, but=("size", "grid", "square")),
    )
    return VisionShape(image=image, **_fields(vision, VisionShape, but=("image",)))


def timm_encoder(vision: VisionTimm, where: str = "model.vision", backend: Backend | None = None) -> TimmViT:
    """Returns the recipe's timm model with timm's initial values, on the default device (which may be meta).

    Without a backend it computes attention within packed images plainly. Raises `UserError` at `where` if timm cannot
    build it.
    """
    try:
        return open_timm(
            vision.timm, feature_layer=vision.feature_layer, image_size=vision.image_size, args=vision.args,
            mean=vision.mean, std=vision.std, resample=vision.resample, backend=backend,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(TIMM.at(where, got=f"{vision.timm}: {error}")) from error


def packed_heads(vision: VisionTimm) -> Heads | None:
    """Returns the heads of a timm encoder that takes images of unlike sizes at once; None for others."""
    with torch.device("meta"):
        encoder = timm_encoder(vision)
    return encoder.heads if isinstance(encoder, PackedTimmViT) else None


def why_sizes_apart(vision: Vision | None) -> str:
    """Returns why an encoder needs a pass for each size of images that keep their shape; empty if it does not."""
    if not isinstance(vision, VisionTimm):
        return ""
    with torch.device("meta"):
        return why_apart(timm_encoder(vision).model)


def resolved_encoder(
    vision: VisionScratch | VisionTimm, where: str = "model.vision"
) -> VisionScratch | VisionTimm:
    """Returns the section with timm's values in place of those that are not given."""
    if isinstance(vision, VisionScratch):
        return vision
    image = _timm_image(vision, where)
    return replace(vision, image_size=image.size, mean=image.mean, std=image.std, resample=image.resample)


def encoder_depth(vision: VisionScratch | VisionTimm) -> int:
    """Returns the number of blocks in the complete encoder, including those after the feature layer."""
    if isinstance(vision, VisionScratch):
        return vision.depth
    with torch.device("meta"):
        return len(timm_encoder(replace(vision, feature_layer=-1)).model.blocks)


def image_spec(recipe: Recipe) -> ImageSpec:
    """Returns the image size and output grid of the recipe's encoder, and the squares that its connector makes rows of;
    `NO_IMAGE` for a text-only model. A factor that does not divide the grid is refused with the connector."""
    vision, connector = recipe.model.vision, recipe.model.connector
    if vision is None:
        return NO_IMAGE
    image = image_of(vision, recipe.where("model.vision"))
    square = connector.factor if connector and connector.factor else 1
    return image if any(side % square for side in image.grid) else replace(image, square=square)


def image_of(vision: Vision, where: str) -> ImageSpec:
    """Returns the image size and output grid of an encoder."""
    if isinstance(vision, VisionScratch):
        return vision_shape(vision).image
    assert isinstance(vision, VisionTimm), "`resolve_pretrained` replaces folders by shapes"
    return _timm_image(vision, where)


def _timm_image(vision: VisionTimm, where: str) -> ImageSpec:
    with torch.device("meta"):
        return timm_encoder(vision, where).image


def decoder_shape(recipe: Recipe, vocab: int) -> DecoderShape:
    """Returns the decoder's shape. `vocab`: the tokenizer's size, the default for the recipe's `vocab`.

    Raises `UserError` if the embedding has fewer matrix rows than the tokenizer has tokens.
    """
    text = recipe.model.text
    assert isinstance(text, TextScratch), "`resolve_pretrained` replaces folders by shapes"
    if text.vocab and text.vocab < vocab:
        got = f"an embedding of {text.vocab} tokens for a tokenizer of {vocab}"
        raise UserError(VOCAB.at(recipe.where("model.text"), got=got))
    rope = Rope(theta=text.rope_theta)
    if text.rope_scaling is not None:
        scaling = text.rope_scaling
        rope = replace(rope, scaling=scaling.kind, **_fields(scaling, Rope, but=("theta", "scaling")))
    sizes = _fields(text, DecoderShape, but=("vocab", "rope"))
    return DecoderShape(vocab=text.vocab or vocab, rope=rope, **sizes)


def dims(recipe: Recipe, vocab: int) -> Dims:
    """Returns the model sizes that plugins may use."""
    shape = decoder_shape(recipe, vocab)
    return Dims(
        width=shape.width, vocab=shape.vocab, layers=shape.depth, heads=shape.heads, image=image_spec(recipe)
    )
