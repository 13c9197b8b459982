"""The encoder against transformers on random weights."""

from dataclasses import replace

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from lmmkit.api.model_info import ImageSpec
from lmmkit.attention.backends import Sdpa
from lmmkit.attention.eager import Eager
from lmmkit.model.vision import VisionShape, ViT
from tests.support import hf_weights
from tests.support.plain_twins import off, show
from tests.support.tiny_model import VISION

CLIP = VisionShape(
    width=24, depth=4, heads=3, mlp=40, patch=4, image=ImageSpec(size=20, grid=(5, 5), width=24)
)
SIGLIP = replace(
    CLIP,
    feature_layer=-2,
    class_token=False,
    pre_norm=False,
    patch_bias=True,
    activation="gelu_tanh",
    norm_eps=1e-6,
)
SIZES = {
    "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 40,
    "image_size": 20, "patch_size": 4, "attn_implementation": "eager",
}  # fmt: skip


def vit(shape: VisionShape, backend=None) -> ViT:
    module = ViT(shape, backend or Sdpa())
    hf_weights.scramble(module, 5)
    return module


def pixels(n: int, size: int = 20) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n))


@torch.no_grad()
def assert_parity(shape: VisionShape, model, skip: int) -> None:
    """`skip` tokens of theirs are no patches."""
    for backend in (Sdpa(), Eager()):
        ours = vit(shape, backend)
        unbuilt = "".join(map(str, range(shape.built, shape.depth)))
        hf_weights.load(
            model, hf_weights.of_vit(ours), spare=rf"^post_layernorm|^head\.|layers\.[{unbuilt}]\."
        )
        want = model(pixels(3), output_hidden_states=True).hidden_states[shape.feature_layer][:, skip:]
        got = ours(pixels(3))
        show(f"off_{backend.name}", off(got, want))
        assert got.shape == (3, 25, 24) and off(got, want) < 1e-5


@pytest.mark.parametrize("layer", [-2, 1, 0])
def test_clip_states_are_transformers_less_the_class_token(layer):
    model = CLIPVisionModel(CLIPVisionConfig(hidden_act="quick_gelu", **SIZES))
    assert_parity(replace(CLIP, feature_layer=layer), model, 1)


def test_siglip_states_are_transformers():
    assert_parity(SIGLIP, SiglipVisionModel(SiglipVisionConfig(layer_norm_eps=1e-6, **SIZES)), 0)


@pytest.mark.parametrize(("layer", "built"), [(-1, 3), (-2, 2), (0, 0), (1, 1), (3, 3)])
def test_layers_after_the_chosen_state_are_not_built(layer, built):
    assert len(ViT(replace(VISION, feature_layer=layer), Sdpa()).blocks) == built


def test_each_image_is_encoded_alone():
    ours = vit(CLIP).double()
    three = pixels(3).double()
    assert off(ours(three)[1:2], ours(three[1:2])) < 1e-12
