"""A shape has the values of its recipe section, field by field."""

from dataclasses import replace

import pytest

from lmmkit.api.model_info import ImageSpec
from lmmkit.errors import UserError
from lmmkit.model.decoder import DecoderShape
from lmmkit.model.rope import Rope
from lmmkit.model.vision import VisionShape
from lmmkit.plan import shapes
from lmmkit.recipe import RopeScaling, TextScratch, VisionScratch

SCALING = RopeScaling(
    kind="yarn", factor=2.5, original=512, low=1.5, high=3.5, fast=30.0, slow=1.25, magnitude=0.75
)
TEXT = TextScratch(
    width=24, depth=3, heads=6, mlp=52, context=700, kv_heads=2, head_size=8, vocab=90, rope_theta=5e5,
    rope_scaling=SCALING, norm_eps=1e-4, qkv_bias=True, qk_norm=True, tied=True,
)  # fmt: skip
VISION = VisionScratch(
    width=32, depth=5, heads=4, patch=7, image_size=42, mlp=70, class_token=False, pre_norm=False,
    patch_bias=True, activation="gelu_tanh", norm_eps=1e-6, feature_layer=3, mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6), resample="bilinear",
)  # fmt: skip


def test_a_decoder_has_every_field_of_its_section(tiny):
    recipe = tiny()
    recipe = replace(recipe, model=replace(recipe.model, text=TEXT))
    rope = Rope(
        theta=5e5, scaling="yarn", factor=2.5, original=512, low=1.5, high=3.5, fast=30.0, slow=1.25,
        magnitude=0.75,
    )  # fmt: skip
    expected = DecoderShape(
        vocab=90, width=24, depth=3, heads=6, kv_heads=2, head_size=8, mlp=52, context=700, rope=rope,
        norm_eps=1e-4, qkv_bias=True, qk_norm=True, tied=True,
    )  # fmt: skip
    assert shapes.decoder_shape(recipe, vocab=80) == expected
    with pytest.raises(UserError, match="model/vocab"):
        shapes.decoder_shape(recipe, vocab=91)


def test_the_tokenizer_gives_the_vocabulary_of_a_decoder_without_one(tiny):
    recipe = tiny()
    text = replace(TEXT, vocab=0, rope_scaling=None)
    recipe = replace(recipe, model=replace(recipe.model, text=text))
    shape = shapes.decoder_shape(recipe, vocab=77)
    assert (shape.vocab, shape.rope) == (77, Rope(theta=5e5))


def test_an_encoder_has_every_field_of_its_section():
    image = ImageSpec(
        size=42, grid=(6, 6), width=32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), resample="bilinear"
    )
    assert shapes.vision_shape(VISION) == VisionShape(
        width=32, depth=5, heads=4, mlp=70, patch=7, image=image, feature_layer=3, class_token=False,
        pre_norm=False, patch_bias=True, activation="gelu_tanh", norm_eps=1e-6,
    )  # fmt: skip
    assert shapes.resolved_encoder(VISION) is VISION
    assert shapes.encoder_depth(VISION) == 5
