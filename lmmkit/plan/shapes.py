"""Sizes and shapes from the recipe, before any weights exist."""

from __future__ import annotations

from dataclasses import replace

import torch

from lmmkit.api.model_info import Dims, ImageSpec
from lmmkit.errors import UserError
from lmmkit.errors.plan import TIMM, VOCAB
from lmmkit.model.decoder import DecoderShape
from lmmkit.model.rope import Rope
from lmmkit.model.vision import TimmViT, VisionShape, open_timm
from lmmkit.recipe import Recipe, TextScratch, VisionScratch, VisionTimm

NO_IMAGE = ImageSpec(size=0, grid=(0, 0), width=0)  # for a text-only model


def vision_shape(vision: VisionScratch) -> VisionShape:
    """Returns the shape of an encoder whose sizes are in the recipe."""
    side = vision.image_size // vision.patch
    image = ImageSpec(
        size=vision.image_size, grid=(side, side), width=vision.width, mean=vision.mean, std=vision.std,
        resample=vision.resample,
    )  # fmt: skip
    return VisionShape(
        width=vision.width, depth=vision.depth, heads=vision.heads, mlp=vision.mlp, patch=vision.patch,
        image=image, feature_layer=vision.feature_layer, class_token=vision.class_token,
        pre_norm=vision.pre_norm, patch_bias=vision.patch_bias, activation=vision.activation,
        norm_eps=vision.norm_eps,
    )  # fmt: skip


def timm_encoder(vision: VisionTimm, where: str = "model.vision") -> TimmViT:
    """Returns the recipe's timm model with timm's initial values, on the default device (which may be meta).

    Raises `UserError` at `where` if timm cannot build it.
    """
    try:
        return open_timm(
            vision.timm, feature_layer=vision.feature_layer, image_size=vision.image_size, args=vision.args,
            mean=vision.mean, std=vision.std, resample=vision.resample,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(TIMM.at(where, got=f"{vision.timm}: {error}")) from error


def encoder_depth(vision: VisionScratch | VisionTimm) -> int:
    """Returns the number of blocks in the complete encoder, including those after the feature layer."""
    if isinstance(vision, VisionScratch):
        return vision.depth
    with torch.device("meta"):
        return len(timm_encoder(replace(vision, feature_layer=-1)).model.blocks)


def image_spec(recipe: Recipe) -> ImageSpec:
    """Returns the image size and output grid of the recipe's encoder; `NO_IMAGE` for a text-only model."""
    vision = recipe.model.vision
    if isinstance(vision, VisionScratch):
        return vision_shape(vision).image
    if isinstance(vision, VisionTimm):
        with torch.device("meta"):
            return timm_encoder(vision, recipe.where("model.vision")).image
    return NO_IMAGE


def decoder_shape(recipe: Recipe, vocab: int) -> DecoderShape:
    """Returns the decoder's shape. `vocab`: the tokenizer's size, the default for the recipe's `vocab`.

    Raises `UserError` if the embedding has fewer matrix rows than the tokenizer has tokens.
    """
    text = recipe.model.text
    assert isinstance(text, TextScratch), "`origins.resolve` puts shapes in the place of folders"
    if text.vocab and text.vocab < vocab:
        got = f"an embedding of {text.vocab} tokens for a tokenizer of {vocab}"
        raise UserError(VOCAB.at(recipe.where("model.text"), got=got))
    return DecoderShape(
        vocab=text.vocab or vocab, width=text.width, depth=text.depth, heads=text.heads,
        kv_heads=text.kv_heads, head_size=text.head_size, mlp=text.mlp, context=text.context,
        rope=_rope(text), norm_eps=text.norm_eps, qkv_bias=text.qkv_bias, qk_norm=text.qk_norm,
        tied=text.tied,
    )  # fmt: skip


def _rope(text: TextScratch) -> Rope:
    if text.rope_scaling is None:
        return Rope(theta=text.rope_theta)
    s = text.rope_scaling
    return Rope(
        theta=text.rope_theta, scaling=s.kind, factor=s.factor, original=s.original, low=s.low, high=s.high,
        fast=s.fast, slow=s.slow, magnitude=s.magnitude,
    )  # fmt: skip


def dims(recipe: Recipe, vocab: int) -> Dims:
    """Returns the model sizes that plugins may use."""
    shape = decoder_shape(recipe, vocab)
    return Dims(
        width=shape.width, vocab=shape.vocab, layers=shape.depth, heads=shape.heads, image=image_spec(recipe)
    )
