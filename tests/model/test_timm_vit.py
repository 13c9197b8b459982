"""timm's encoders against timm on random weights."""

from dataclasses import replace

import pytest
import timm
import torch

from lmmkit.api.model_info import ImageSpec
from lmmkit.model.timm_vit import TimmViT, open_timm
from tests.model.test_vision import pixels
from tests.support import hf_weights
from tests.support.plain_twins import off, show

TIMM = "vit_tiny_patch16_224"


def random_timm(size: int = 48, **settings):
    model = timm.create_model(TIMM, pretrained=False, num_classes=0, img_size=size, depth=4, **settings)
    hf_weights.scramble(model, 9)
    return model.eval()


@pytest.mark.parametrize("layer", [-1, -2, 1, 4])
def test_timm_states_are_forward_intermediates(layer):
    spec = ImageSpec(size=48, grid=(3, 3), width=192)
    whole, state = random_timm(), layer if layer >= 0 else 5 + layer
    ours = TimmViT(random_timm(), image=spec, feature_layer=layer)
    with torch.no_grad():
        want = whole.forward_intermediates(
            pixels(2, 48), norm=False, output_fmt="NLC", intermediates_only=True
        )
        got = ours(pixels(2, 48))
    show("off", off(got, want[state - 1]))
    assert got.shape == (2, 9, 192) and torch.equal(got, want[state - 1])
    assert len(ours.model.blocks) == state


@pytest.mark.parametrize("layer", [0, -5, 5, -6])
def test_timm_refuses_a_state_it_cannot_give(layer):
    with pytest.raises(ValueError, match="feature_layer"):
        TimmViT(random_timm(), image=ImageSpec(size=48, grid=(3, 3), width=192), feature_layer=layer)


def test_register_and_class_tokens_of_timm_are_dropped():
    spec = ImageSpec(size=48, grid=(3, 3), width=192)
    with torch.no_grad():
        got = TimmViT(random_timm(reg_tokens=4), image=spec, feature_layer=-2)(pixels(1, 48))
    assert got.shape == (1, 9, 192)


def test_timm_by_name_is_built_without_a_download(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    encoder = open_timm(TIMM, feature_layer=-2, image_size=32, args={})
    assert encoder.image == replace(encoder.image, size=32, grid=(2, 2), width=192)
    assert encoder.image.mean == (0.5, 0.5, 0.5) and len(encoder.model.blocks) == 11
    assert encoder(torch.zeros(1, 3, 32, 32)).shape == (1, 4, 192)


def test_a_timm_image_size_that_its_patches_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="image_size 50 is no multiple"):
        open_timm(TIMM, feature_layer=-2, image_size=50, args={})
