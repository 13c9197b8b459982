"""An encoder on 16 images of unlike sizes: packed into one pass, against images padded to the largest of them, and one
of timm's against a pass for each size."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benches.pairs import compare
from lmmkit.api.batch import Patches
from lmmkit.api.model_info import ImageSpec
from lmmkit.attention.backends import Sdpa
from lmmkit.model.timm_vit import PackedTimmViT, TimmViT, open_timm
from lmmkit.model.vision import VisionShape, ViT
from tests.support.hf_weights import scramble

IMAGES, SIDE, MOST = 16, 14, 196  # patches of the largest image
SHAPE = VisionShape(
    width=192, depth=2, heads=3, mlp=768, patch=SIDE, feature_layer=-1,
    image=ImageSpec(size=MOST, grid=(14, 14), width=192),
)  # fmt: skip


def grids() -> list[tuple[int, int]]:
    """Returns grids of 1 to `MOST` patches: areas are drawn evenly, and shapes up to 1 : 3."""
    draw = np.random.default_rng(0)
    area, shape = draw.uniform(16, MOST, IMAGES), np.exp(draw.uniform(-np.log(3), np.log(3), IMAGES))
    lines = np.maximum(1, np.sqrt(area * shape).astype(int))
    return [(int(n), max(1, int(a / n))) for n, a in zip(lines, area, strict=True)]


def padded(encoder: ViT, images: Patches) -> Tensor:
    """Returns the tokens of all images, each filled up to the longest, and masked as keys."""
    longest, first = max(images.lengths) + 1, len(encoder.class_token)
    patches_RD = F.linear(images.patch_RF, encoder.patch.weight.flatten(1))
    rows = [
        torch.cat([encoder.class_token, x_ND]) + encoder._positions(grid)
        for grid, x_ND in zip(images.grids, patches_RD.split(images.lengths), strict=True)
    ]
    x_IND = encoder.pre_norm(nn.utils.rnn.pad_sequence(rows, batch_first=True))
    seen_I11N = (torch.arange(longest) < torch.tensor([[n + first] for n in images.lengths]))[:, None, None]

    def attend(qkv_IND: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (SHAPE.heads, -1)).transpose(1, 2) for x in qkv_IND.chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen_I11N).transpose(1, 2).flatten(2)

    for block in encoder.blocks:
        x_IND = block(x_IND, attend)
    return torch.cat([x_ND[first : n + first] for x_ND, n in zip(x_IND, images.lengths, strict=True)])


def step(encode: Callable[[], Tensor], encoder: nn.Module, backward: bool) -> Callable[[], Tensor]:
    """Returns a forward pass, and the backward pass of the sum of its tokens."""

    def forward() -> Tensor:
        with torch.no_grad():
            return encode()

    def both() -> Tensor:
        tokens_RD = encode()
        torch.autograd.grad(tokens_RD.square().sum(), list(encoder.parameters()))
        return tokens_RD.detach()

    return both if backward else forward


def drawn() -> Patches:
    draw = torch.Generator().manual_seed(0)
    pixels = [torch.randn(3, lines * SIDE, columns * SIDE, generator=draw) for lines, columns in grids()]
    return Patches.of(pixels, SIDE)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "training"])
def test_packed_images_against_padded(backward, benchmark):
    encoder, images = ViT(SHAPE, Sdpa()), drawn()
    scramble(encoder, 0)
    ours = step(lambda: encoder.packed(images), encoder, backward)
    peer = step(lambda: padded(encoder, images), encoder, backward)
    diff = float((ours() - peer()).abs().max() / peer().abs().max())
    assert diff < 1e-5
    benchmark.extra_info.update(
        compare(ours, peer), sense="at least", gate=1.3, target=None, loss_diff=diff,
        peer=f"{IMAGES} images of {max(images.lengths)} patches with a mask; {sum(images.lengths)} are real",
    )  # fmt: skip
    benchmark.pedantic(ours, rounds=1)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "training"])
def test_packed_images_of_timm_against_a_pass_for_each_size(backward, benchmark):
    sizes = {"embed_dim": 192, "depth": 2, "num_heads": 3, "patch_size": SIDE, "dynamic_img_size": True}
    encoder = open_timm("vit_tiny_patch16_224", feature_layer=-1, image_size=196, args=sizes, backend=Sdpa())
    assert isinstance(encoder, PackedTimmViT)
    scramble(encoder, 0)
    images = drawn()
    ours = step(lambda: encoder.packed(images), encoder, backward)
    peer = step(lambda: TimmViT.packed(encoder, images), encoder, backward)
    diff = float((ours() - peer()).abs().max() / peer().abs().max())
    assert diff < 1e-5
    benchmark.extra_info.update(
        compare(ours, peer), sense="at least", gate=None, target=None, loss_diff=diff,
        peer=f"{len(set(images.grids))} passes of timm for {IMAGES} images, {sum(images.lengths)} patches",
    )  # fmt: skip
    benchmark.pedantic(ours, rounds=1)
