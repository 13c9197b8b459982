"""The whole model against transformers' LLaVA, and what its rows are filled with."""

from dataclasses import replace

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from lmmkit.api.batch import EmbedScatter, Patches
from lmmkit.api.sample import Image
from lmmkit.attention.backends import Sdpa
from lmmkit.attention.eager import Eager
from lmmkit.attention.schedule import AttentionSpec
from lmmkit.model.vlm import LMM
from tests.support import hf_weights
from tests.support.plain_twins import off, show
from tests.support.tiny_model import (
    SPEC,
    TEXT,
    VISION,
    packed,
    pixels,
    prompt,
    random_ids,
    text_batch,
    tiny_lmm,
    whole,
)

IMAGE = TEXT.vocab - 1  # the id of an image row in transformers


def theirs(lmm: LMM) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=VISION.width, num_hidden_layers=VISION.depth, num_attention_heads=VISION.heads,
        intermediate_size=VISION.mlp, image_size=SPEC.size, patch_size=VISION.patch, hidden_act="quick_gelu",
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=TEXT.vocab, hidden_size=TEXT.width, num_hidden_layers=TEXT.depth, head_dim=TEXT.head_size,
        num_attention_heads=TEXT.heads, num_key_value_heads=TEXT.kv_heads, intermediate_size=TEXT.mlp,
        max_position_embeddings=TEXT.context, rms_norm_eps=TEXT.norm_eps,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-2,
        vision_feature_select_strategy="default", attn_implementation="eager",
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    return hf_weights.load(model, hf_weights.of_lmm(lmm), spare=r"post_layernorm|encoder\.layers\.2\.")


@torch.no_grad()
def logits(lmm: LMM, batch) -> torch.Tensor:
    return lmm.logits(lmm(whole(batch), {}).hidden_WD)


@pytest.mark.parametrize("backend", [Sdpa(), Eager()], ids=lambda b: b.name)
def test_packed_samples_are_llava_passes_apart(backend):
    lmm = tiny_lmm(backend=backend)
    model = theirs(lmm)
    ids = [random_ids(n, n, IMAGE) for n in (12, 7)]
    samples = [(ids[0], "a", 5), (ids[1], "b", 1)]
    batch, paths = packed([[prompt(*sample)] for sample in samples])
    got = logits(lmm, batch)
    for (text, name, at), path in zip(samples, paths, strict=True):
        tokens = torch.tensor([[*text[:at], *[IMAGE] * SPEC.tokens, *text[at:]]])
        with torch.no_grad():
            want = model(input_ids=tokens, pixel_values=pixels(Image(name))[None]).logits[0]
        alone, _ = packed([[prompt(text, name, at)]])
        show("off_packed", off(got[path], want))
        show("off_alone", off(logits(lmm, alone), want))
        assert off(got[path], want) < 1e-5 and off(logits(lmm, alone), want) < 1e-5


def test_rows_come_from_ids_vision_and_tokens_each_where_its_fill_says():
    lmm = tiny_lmm()
    batch, _ = packed([[prompt([5, 6, 7], "a")]])
    drt = torch.full((1, TEXT.width), 3.0)
    token = EmbedScatter("plugins.x", torch.tensor([11]), torch.tensor([0]))
    id_T = batch.id_T.index_fill(0, torch.tensor([11]), -1)
    encoded = lmm.encode(batch)
    x_TD = lmm.rows(
        replace(batch, id_T=id_T, scatters=(*batch.scatters, token)),
        lmm.project(encoded),
        {"plugins.x": drt},
    )
    assert torch.equal(x_TD[1:10], lmm.connector(encoded.sized_IND)[0]) and torch.equal(x_TD[11], drt[0])
    assert torch.equal(x_TD[[0, 10]], lmm.decoder.embed(torch.tensor([5, 6])))


def test_a_file_that_several_trees_show_is_encoded_once_and_learns_from_all():
    lmm = tiny_lmm(dtype=torch.float64)
    gradients = []
    for groups in ([[5, 6]], [[8, 9, 4]], [[5, 6], [8, 9, 4]]):
        batch, _ = packed([[prompt(ids, "a")] for ids in groups])
        assert len(batch.pixels_ICXY) == 1
        lmm.zero_grad()
        lmm(whole(batch), {}).hidden_WD.square().sum().backward()
        gradients.append(lmm.vision.patch.weight.grad.clone())
    assert off(gradients[0] + gradients[1], gradients[2]) < 1e-12 and gradients[2].abs().max() > 0


@pytest.mark.parametrize(("sized", "native"), [(True, True), (True, False), (False, True), (False, False)])
def test_images_of_all_kinds_go_through_the_encoder_in_one_pass(sized, native):
    lmm, passes = tiny_lmm(), []
    draw = torch.Generator().manual_seed(0)
    shapes = [(3, 4 * lines, 4 * columns) for lines, columns in ((1, 5), (3, 3), (4, 2))]
    images = Patches.of([torch.randn(shape, generator=draw) for shape in shapes], 4)
    batch, _ = packed([[prompt([5, 6, 7], name)] for name in "ab"] if sized else [[prompt([5, 6, 7])]])
    batch = replace(batch, patches=images if native else None)
    assert len(batch.pixels_ICXY) == 2 * sized
    want = lmm.encode_sized(batch.pixels_ICXY), lmm.vision.packed(images) if native else None
    lmm.vision.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    encoded = lmm.encode(batch)
    lmm(batch, {}, encoded)
    assert len(passes) == (sized or native)
    for got, alone in zip(encoded[:2], want, strict=True):
        assert (got is None) is (alone is None) and (got is None or off(got, alone) < 1e-5)


def test_a_batch_without_images_does_not_run_the_encoder():
    lmm = tiny_lmm()
    lmm.vision.forward = None
    assert logits(lmm, text_batch([[3, 4, 5]])).shape == (3, TEXT.vocab)


def test_logits_and_mass_are_float32_or_wider():
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        lmm, batch = tiny_lmm(dtype=dtype), text_batch([[3, 4, 5]])
        spec = AttentionSpec(batch.forest, torch.tensor([True, False, False]), torch.tensor([2]))
        batch = replace(batch, attention=spec, last=spec)
        out = lmm(batch, {})
        assert lmm.logits(out.hidden_WD).dtype == wide and out.mass_LR.dtype == wide
        assert out.mass_LR.shape == (TEXT.depth, 1)
