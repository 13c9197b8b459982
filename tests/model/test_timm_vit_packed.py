"""Images of unlike sizes in one pass of timm's encoders, against timm's own pass for each size."""

from __future__ import annotations

from inspect import signature

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

from lmmkit.api.batch import Patches
from lmmkit.attention.backends import Sdpa
from lmmkit.attention.eager import Eager
from lmmkit.model.timm_vit import PackedTimmViT, TimmViT, WithinImages, open_timm, why_apart
from tests.model.test_vision import CLIP, vit
from tests.model.test_vision_packed import GRIDS, drawn
from tests.support.hf_weights import scramble
from tests.support.plain_twins import off, show

SIZES = {"patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "dynamic_img_size": True}
FAMILIES = {
    "vit_tiny_patch16_224": {},
    "vit_base_patch16_clip_224": {},  # a norm before the blocks
    "vit_base_patch16_siglip_224": {},  # no class token
    "vit_small_patch14_reg4_dinov2": {},  # registers without positions, layer scale
    "deit_tiny_distilled_patch16_224": {},  # two first tokens
    "deit3_small_patch16_224": {},  # a class token without a position
    "vit_small_patch16_224": {"qk_norm": True, "scale_attn_norm": True},
    "vit_base_patch16_rpn_224": {},  # norms after attention and MLP
}
NEWER = pytest.mark.skipif(
    "attn_layer" not in signature(VisionTransformer).parameters, reason="this timm has no attn_layer"
)
APART = [
    ("eva02_tiny_patch14_224", {}, "Eva is no plain ViT"),
    ("vit_base_patch16_xp_224", {}, "ParallelScalingBlock"),
    pytest.param("vit_tiny_patch16_224", {"attn_layer": "diff"}, "DiffAttention", marks=NEWER),
    ("vit_tiny_patch16_224", {"drop_path_rate": 0.1}, "stochastic depth"),
    ("vit_tiny_patch16_224", {"attn_drop_rate": 0.1}, "dropout"),
    ("vit_tiny_patch16_224", {"num_heads": 8}, "heads of 3 values"),
]


def encoder_of(name: str, backend=None, **args) -> TimmViT:
    made = open_timm(name, feature_layer=-2, image_size=20, args=SIZES | args, backend=backend)
    scramble(made, 2)
    return made


@pytest.mark.parametrize("backend", [Sdpa(), Eager()], ids=lambda each: each.name)
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_images_have_the_tokens_and_gradients_of_a_pass_for_each_size(name, backend):
    encoder, images = encoder_of(name, backend, **FAMILIES[name]), Patches.of(drawn(GRIDS, 4), 4)
    assert isinstance(encoder, PackedTimmViT) and not why_apart(encoder.model)
    weight_RD = torch.randn(sum(images.lengths), 24, generator=torch.Generator().manual_seed(1))
    got, want = encoder.packed(images), TimmViT.packed(encoder, images)
    show("off", off(got, want))
    assert got.shape == weight_RD.shape and off(got, want) < 1e-5
    own, plain = (
        torch.autograd.grad((x * weight_RD).sum(), list(encoder.parameters()), materialize_grads=True)
        for x in (got, want)
    )
    for (key, _), mine, theirs in zip(encoder.named_parameters(), own, plain, strict=True):
        # a number added to all keys changes nothing, so its gradient is rounding
        assert off(mine, theirs) < 2e-5 or (key.endswith("k_norm.bias") and mine.abs().max() < 1e-4), key


@pytest.mark.parametrize(("name", "args", "why"), APART)
def test_other_encoders_have_a_pass_for_each_size_and_the_reason_is_named(name, args, why):
    encoder = encoder_of(name, **args).eval()
    assert type(encoder) is TimmViT and why in why_apart(encoder.model)
    with torch.no_grad():
        pixels = drawn(GRIDS, 4)
        got = encoder.packed(Patches.of(pixels, 4)).split([a * b for a, b in GRIDS])
        for own, image in zip(got, pixels, strict=True):
            assert off(own, encoder(image[None])[0]) < 1e-5


def test_without_torch_s_kernel_images_are_never_mixed(monkeypatch):
    encoder, images = encoder_of("vit_tiny_patch16_224"), Patches.of(drawn(GRIDS, 4), 4)
    monkeypatch.setattr(encoder.model.blocks[1].attn, "fused_attn", False)
    assert "TIMM_FUSED_ATTN" in why_apart(encoder.model)
    with pytest.raises((TypeError, AttributeError)):
        encoder.packed(images)
    monkeypatch.undo()
    encoder.model.blocks[1].attn.attn_drop.p = 0.5
    with pytest.raises(TypeError, match="returned NotImplemented"):
        encoder.packed(images)


def test_what_takes_the_place_of_a_mask_is_no_tensor():
    mask, x = WithinImages(lambda qkv_TC: qkv_TC), torch.zeros(1, 1, 2, 2)
    for misuse in (lambda: x + mask, lambda: F.scaled_dot_product_attention(x, x, x, mask, 0.0, True)):
        with pytest.raises(TypeError):
            misuse()


def test_patches_cannot_be_dropped():
    with pytest.raises(ValueError, match="patch_drop_rate"):
        encoder_of("vit_tiny_patch16_224", patch_drop_rate=0.5)


def test_positions_are_timm_s():
    encoder, image = encoder_of("vit_tiny_patch16_224"), drawn([(2, 7)], 4)[0]
    ours, model = vit(CLIP), encoder.model
    ours.position.data.copy_(model.pos_embed[0])
    patches = model.patch_embed(image[None])
    shown = model._pos_embed(patches)[0] - torch.cat([model.cls_token[0], patches.flatten(1, 2)[0]])
    assert off(ours._positions((2, 7)), shown) < 1e-5
