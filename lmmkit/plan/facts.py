"""What the recipe says of sizes, before any weight exists."""

from __future__ import annotations

from lmmkit.dims import Dims, ImageSpec
from lmmkit.errors import Problem, UserError
from lmmkit.model.decoder import DecoderShape
from lmmkit.model.vision import TimmViT, VisionShape, open_timm
from lmmkit.recipe import Recipe, TextScratch, VisionScratch, VisionTimm


def vision_shape(vision: VisionScratch) -> VisionShape:
    """The shape of an encoder written out in the recipe."""
    side = vision.image_size // vision.patch
    image = ImageSpec(
        size=vision.image_size, grid=(side, side), width=vision.width, mean=vision.mean, std=vision.std
    )
    return VisionShape(
        width=vision.width, depth=vision.depth, heads=vision.heads, mlp=vision.mlp, patch=vision.patch,
        image=image, feature_layer=vision.feature_layer, class_token=vision.class_token,
        pre_norm=vision.pre_norm, patch_bias=vision.patch_bias, activation=vision.activation,
        norm_eps=vision.norm_eps,
    )  # fmt: skip


def timm_encoder(recipe: Recipe, vision: VisionTimm) -> TimmViT:
    """The timm model of the recipe; its weights from the named file, else timm's random ones."""
    weights = None if vision.weights == "none" else str(recipe.path(vision.weights))
    try:
        return open_timm(
            vision.timm, feature_layer=vision.feature_layer, image_size=vision.image_size, weights=weights,
            mean=vision.mean, std=vision.std,
        )  # fmt: skip
    except (RuntimeError, FileNotFoundError, AttributeError, ValueError) as error:
        mend = "Take a ViT of `timm.list_models('vit*')`, with matching local weights."
        where, got = recipe.where("model.vision.timm"), f"{vision.timm}: {error}"
        raise UserError(Problem("model/timm", where, got, "a timm ViT", mend)) from error


def image_spec(recipe: Recipe) -> ImageSpec:
    """What the recipe's encoder reads and gives."""
    vision = recipe.model.vision
    if isinstance(vision, VisionScratch):
        return vision_shape(vision).image
    if isinstance(vision, VisionTimm):
        return timm_encoder(recipe, vision).image
    raise UserError(_no_import(recipe, "model.vision.from", vision.from_))


def decoder_shape(recipe: Recipe, vocab: int) -> DecoderShape:
    """The decoder's sizes; the vocabulary is the tokenizer's."""
    text = recipe.model.text
    if not isinstance(text, TextScratch):
        raise UserError(_no_import(recipe, "model.text.from", text.from_))
    return DecoderShape(
        vocab=vocab, width=text.width, depth=text.depth, heads=text.heads, kv_heads=text.kv_heads,
        head_size=text.head_size, mlp=text.mlp, context=text.context, rope_theta=text.rope_theta,
        norm_eps=text.norm_eps, qkv_bias=text.qkv_bias, qk_norm=text.qk_norm, tied=text.tied,
    )  # fmt: skip


def dims(recipe: Recipe, vocab: int) -> Dims:
    """What a plugin may know of the model."""
    shape = decoder_shape(recipe, vocab)
    return Dims(
        width=shape.width, vocab=shape.vocab, layers=shape.depth, heads=shape.heads, image=image_spec(recipe)
    )


def _no_import(recipe: Recipe, key: str, got: str) -> Problem:
    mend = "Give the part's shapes, or set `stages.<first>.start` to a model folder lmmkit wrote."
    return Problem("model/import", recipe.where(key), f"`{got}`", "a model this release can read", mend)
