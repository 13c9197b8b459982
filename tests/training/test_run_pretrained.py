"""From a public folder to a public folder: read, trained by low-rank updates, resumed, handed back."""

from __future__ import annotations

import shutil

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import lmmkit
from lmmkit.errors import UserError
from lmmkit.import_export import export_model
from lmmkit.plan.prepare import prepare
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.run import train
from lmmkit.weights.detect import LLAVA_HF
from lmmkit.weights.pretrained_folder import _spelt
from tests.support import hf_model_folders
from tests.training.test_run import figures

LORA = "stages.finetune.train={connector: {lr: 1.0e-4}, text: {lora: {r: 4, alpha: 8, dropout: 0.1}}, plugins: {}}"


@pytest.fixture(scope="module")
def public(scenes, tmp_path_factory):
    """Returns a llava-hf folder whose vocabulary fits the scenes' tokenizer, and the overrides that load it."""
    config = hf.LlavaConfig(
        vision_config=hf_model_folders.VISIONS["clip"],
        text_config=hf.LlamaConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40,
            vocab_size=1000, max_position_embeddings=512,
        ),
        image_token_index=998,
    )  # fmt: skip
    folder = hf_model_folders.saved(
        hf_model_folders.made(hf.LlavaForConditionalGeneration(config)), tmp_path_factory.mktemp("p") / "hf"
    )
    return folder, [
        f"model.vision={{from: {folder}}}", f"model.connector={{kind: mlp2x_gelu, from: {folder}}}",
        f"model.text={{from: {folder}, context: 256}}", "speed.tokens=8192",
    ]  # fmt: skip


def tensors(run, stage):
    return load_file(RunFolder(run).model(stage) / "model.safetensors")


def test_low_rank_updates_from_public_weights_to_public_weights(public, tiny, tmp_path):
    folder, overrides = public
    recipe = tiny(*overrides, LORA)
    run = train(recipe, out=tmp_path / "run").run
    before, after = tensors(run.path, "pretrain"), tensors(run.path, "finetune")
    assert before.keys() == after.keys() and not any("lora" in name for name in after)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    linears = {n for n in after if n.startswith("lmm.decoder.blocks") and "norm" not in n}
    assert linears <= moved and not any(
        "decoder.embed" in n or "decoder.head" in n or "vision" in n for n in moved
    )
    export_model(run.path, tmp_path / "back", "llava-hf")
    theirs = hf.LlavaForConditionalGeneration.from_pretrained(tmp_path / "back").eval()
    id_BT, _ = hf_model_folders.ids(300, [30])
    image = theirs.config.image_token_index
    hf_model_folders.with_images(id_BT, torch.ones_like(id_BT), [[3]], image, 9)
    pixels = torch.randn(1, 3, 30, 30)
    ours = lmmkit.load(run.path, device="cpu")
    with torch.no_grad():
        want = theirs(input_ids=id_BT, pixel_values=pixels).logits
    got = ours.logits(id_BT, pixels)
    assert hf_model_folders.error(got, want[..., : got.shape[-1]]) < 1e-5
    source, back = (
        {_spelt(n, LLAVA_HF): t for n, t in load_file(at / "model.safetensors").items()}
        for at in (folder, tmp_path / "back")
    )
    source = {n: t for n, t in source.items() if n.startswith("vision.encoder.layers.2")}
    assert source and all(torch.equal(back[n], t) for n, t in source.items())  # the layer that is not read


def test_a_run_with_low_rank_updates_resumes_bit_for_bit(public, tiny, tmp_path, monkeypatch):
    recipe = tiny(*public[1], LORA)
    whole = train(recipe, out=tmp_path / "whole").run
    torch.rand(1)  # draws of this process change nothing: dropout follows from the recipe's seed
    again = train(recipe, out=tmp_path / "again").run
    assert figures(again) == figures(whole)
    shutil.copytree(whole.path, tmp_path / "part")
    part = RunFolder(tmp_path / "part")
    shutil.rmtree(part.model("finetune"))
    newest = sorted((part.path / "checkpoints").iterdir())[-1]
    shutil.rmtree(newest)  # go on from the one before, in the middle of the second stage
    train(recipe, out=part.path, resume=True)
    assert figures(part) == figures(whole)
    kept = [run.model("finetune") / "lora.safetensors" for run in (part, whole)]
    assert kept[0].read_bytes() == kept[1].read_bytes()
    ours, theirs = tensors(part.path, "finetune"), tensors(whole.path, "finetune")
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


def test_a_vision_tower_learns_at_its_own_rate(public, tiny, tmp_path):
    train_keys = "stages.finetune.train={vision: {lr: 2.0e-6}, connector: {}, text: {}, plugins: {}}"
    run = train(tiny(*public[1], train_keys), out=tmp_path / "run").run
    before, after = tensors(run.path, "pretrain"), tensors(run.path, "finetune")
    name = "lmm.vision.blocks.0.qkv.weight"
    step = (after[name] - before[name]).abs().max()
    assert 0 < step < 6 * 2.0e-6 * 1.5


def test_a_tokenizer_that_does_not_fit_names_both(public, tiny, tmp_path):
    folder, _ = public
    small = hf_model_folders.decoder("llama", "plain")
    hf_model_folders.saved(small, tmp_path / "small")
    with pytest.raises(UserError, match=r"an embedding of 131 tokens for a tokenizer of \d+"):
        prepare(tiny(f"model.text={{from: {tmp_path / 'small'}, context: 32}}"))
    with pytest.raises(UserError, match=r"model/context"):
        prepare(tiny(*public[1], f"model.text={{from: {folder}, context: 4096}}"))
    with pytest.raises(UserError, match=r"weights/missing-part"):
        prepare(tiny(f"model.vision={{from: {tmp_path / 'small'}}}"))
