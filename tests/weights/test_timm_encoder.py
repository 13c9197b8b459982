"""timm's encoders from local files: by name with a weights file, and from a folder of its hub layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

import lmmkit
from lmmkit import build
from lmmkit.errors import UserError
from lmmkit.model.timm_vit import resample_of
from lmmkit.plan.prepare import prepare
from lmmkit.recipe import dump, read_text
from lmmkit.show_model import show_model
from lmmkit.training.run import train
from tests.conftest import PLAIN
from tests.support.hf_weights import scramble

# Small ones: a plain ViT, one in CLIP's manner, and one whose rotary tables are in no file.
SMALL = {"embed_dim": 48, "num_heads": 3, "depth": 3}
KINDS = {
    "plain": ("vit_tiny_patch16_224", SMALL),
    "clip": ("vit_base_patch16_clip_quickgelu_224.openai", SMALL),
    "rotary": ("vit_small_patch16_dinov3", {"depth": 2, "embed_dim": 48, "num_heads": 3}),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def whole(kind: str, **more) -> torch.nn.Module:
    """timm's own model with random values."""
    name, args = KINDS[kind]
    model = timm.create_model(name, pretrained=False, **({"img_size": 48} | args | more))
    scramble(model, 4)
    return model.eval()


@pytest.fixture
def folder(tmp_path):
    """folder(kind) -> a folder as timm pushes it to a hub."""

    def make(kind: str, **more) -> Path:
        save_for_hf(whole(kind, **more), tmp_path / kind, safe_serialization=True)
        return tmp_path / kind

    return make


def encoder(recipe):
    """Builds the encoder as a run begins with it."""
    prepared = prepare(recipe)
    device = torch.device("cpu")
    build.check_pretrained(prepared.recipe, prepared.dims, prepared.pretrained, device)
    built = build.build_objective(
        prepared.recipe, prepared.instances.components, prepared.dims, device, pretrained=prepared.pretrained
    )
    return built.lmm.vision.eval()


def check(ours, theirs, layer: int) -> None:
    """Equal to timm's own states, bit for bit."""
    pixels = torch.randn(2, 3, ours.image.size, ours.image.size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        states = theirs.forward_intermediates(pixels, norm=False, output_fmt="NLC", intermediates_only=True)
        assert torch.equal(ours(pixels), states[layer])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [-1, -2])
def test_a_hub_folder_on_disk_is_timms_model(kind, layer, folder, tiny):
    at = folder(kind)
    recipe = tiny(f"model.vision={{from: {at}, feature_layer: {layer}}}", text=PLAIN)
    ours = encoder(recipe)
    check(ours, timm.create_model(f"local-dir:{at}", pretrained=True).eval(), layer)
    config = json.loads((at / "config.json").read_text())["pretrained_cfg"]
    assert list(ours.image.mean) == config["mean"] and list(ours.image.std) == config["std"]
    assert ours.image.size == 48 and ours.image.grid == (3, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_by_name_with_a_weights_file(kind, folder, tiny):
    name, args = KINDS[kind]
    file = folder(kind) / "model.safetensors"
    rest = f"weights: {file}, image_size: 48, args: {json.dumps(args)}"
    recipe = tiny(f"model.vision={{timm: {name}, {rest}}}", text=PLAIN)
    named = tiny(f"model.vision={{from: 'timm:{name}', {rest}}}", text=PLAIN)
    assert named == recipe and dump(named) == dump(recipe)
    check(encoder(recipe), whole(kind), -2)


@pytest.mark.parametrize("kind", ["plain", "clip"])
def test_another_size_is_resampled_as_timm_does(kind, folder, tiny):
    at = folder(kind)
    recipe = tiny(f"model.vision={{from: {at}, image_size: 80}}", text=PLAIN)
    ours = encoder(recipe)
    assert ours.image.grid == (5, 5)
    check(ours, timm.create_model(f"local-dir:{at}", pretrained=True, img_size=80).eval(), -2)


def test_what_a_run_leaves_opens_without_the_folder(folder, tiny, tmp_path):
    at = folder("clip")
    recipe = tiny(
        f"model.vision={{from: {at}}}", "stages.pretrain.length.steps=1", "stages.finetune.length.steps=1",
        "stages.pretrain.train={connector: {}}", "speed.tokens=8192", text=PLAIN,
    )  # fmt: skip
    run = train(recipe, out=tmp_path / "run").run
    shutil.rmtree(at)
    check(lmmkit.load(run.path, device="cpu").objective.lmm.vision, whole("clip"), -2)


def test_an_interpolation_that_lmmkit_lacks_is_replaced_with_a_warning(caplog):
    resample_of.cache_clear()
    assert [resample_of(name) for name in ("bicubic", "bilinear")] == ["bicubic", "bilinear"]
    assert not caplog.records
    assert resample_of("lanczos") == "bicubic" == resample_of("lanczos")
    (record,) = caplog.records
    assert "lanczos" in record.getMessage() and "model.vision.resample" in record.getMessage()


def test_random_values_follow_the_seed_alone(tiny):
    name, args = KINDS["plain"]
    change = f"model.vision={{timm: {name}, weights: none, image_size: 48, args: {json.dumps(args)}}}"
    first = encoder(tiny(change, text=PLAIN)).state_dict()
    torch.randn(7)
    again, other = encoder(tiny(change, text=PLAIN)), encoder(tiny(change, "seed=6", text=PLAIN))
    assert all(torch.equal(t, first[n]) for n, t in again.state_dict().items())
    weight = "model.blocks.0.attn.qkv.weight"
    assert not torch.equal(other.state_dict()[weight], first[weight])


def test_show_counts_what_timm_counts(folder):
    at = folder("plain", num_classes=0)
    found = show_model(at)
    theirs = whole("plain", num_classes=0)
    unread = [n for n, p in theirs.named_parameters() if n.startswith(("norm.", "blocks.2."))]
    assert (found["kind"], set(found["parameters"])) == ("timm", {"vision"})
    assert found["total"] == sum(p.numel() for n, p in theirs.named_parameters() if n not in unread)
    assert found["model"]["vision"]["timm"] == KINDS["plain"][0]


class TestBad:
    def problems(self, vision: str, scenes) -> list:
        with pytest.raises(UserError) as raised:
            encoder(read_text(PLAIN, overrides=[f"model.vision={{{vision}}}"], root=scenes))
        return list(raised.value.problems)

    @pytest.mark.parametrize(
        "vision, code, words",
        [
            ("timm: vit_tiny_patch16_244, weights: none", "model/timm", "Did you mean `vit_tiny_patch16_224`"),
            ("timm: 'hf-hub:timm/vit_tiny_patch16_224', weights: none", "model/timm", "no such model"),
            ("timm: 'local-dir:/tmp', weights: none", "model/timm", "no such model"),
            ("timm: resnet18, weights: none", "model/timm", "ResNet"),
            ("timm: vit_tiny_patch16_224.no_such_tag, weights: none", "model/timm", "no_such_tag"),
            ("timm: vit_tiny_patch16_224, weights: none, args: {dept: 3}", "model/timm", "dept"),
            ("timm: vit_tiny_patch16_224, weights: none, args: {checkpoint_path: /etc/passwd}", "model/timm", "shape"),
            ("timm: vit_tiny_patch16_224, weights: none, args: {pretrained: true}", "model/timm", "shape"),
            ("timm: vit_tiny_patch16_224, weights: none, image_size: 50", "model/timm", "no multiple"),
            ("timm: vit_tiny_patch16_224, weights: none, feature_layer: 0", "model/timm", "feature_layer 0"),
            ("timm: vit_tiny_patch16_224, weights: nowhere.safetensors", "weights/no-weights-file", "safetensors"),
            ("from: 'timm:vit_tiny_patch16_224'", "recipe/missing-key", "weights"),
            ("from: 'timm:', weights: none", "recipe/out-of-range", "a text"),
            ("from: somewhere, weights: x", "recipe/unknown-key", "weights"),
            ("from: 'timm:vit_tiny_patch16_224', weights: none, mlp: 3", "recipe/unknown-key", "mlp"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_is_reported(self, vision, code, words, scenes):
        (problem,) = self.problems(vision, scenes)
        assert problem.code == code and words in str(problem), problem

    def test_tensors_that_do_not_fit_are_listed_at_once(self, folder, scenes):
        at = folder("plain")
        state = load_file(at / "model.safetensors")
        del state["blocks.0.mlp.fc1.bias"]
        state["cls_token"] = torch.zeros(1, 1, 7)
        state["visual.bogus"] = torch.zeros(2)
        save_file(state, at / "model.safetensors")
        found = self.problems(f"from: {at}", scenes)
        assert sorted(p.code for p in found) == [
            "weights/extra-tensors",
            "weights/missing-tensors",
            "weights/shape",
        ]
        assert "blocks.0.mlp.fc1.bias" in str(found) and "visual.bogus" in str(found)

    def test_pickled_weights_are_refused(self, folder, scenes):
        at = folder("plain")
        torch.save(load_file(at / "model.safetensors"), at / "pytorch_model.bin")
        (at / "model.safetensors").unlink()
        (problem,) = self.problems(f"from: {at}", scenes)
        assert problem.code == "weights/pickle"

    @pytest.mark.parametrize(
        "change",
        [
            {"model_args": {"checkpoint_path": "/etc/passwd"}}, {"model_args": {"pretrained_cfg": {"url": "http://x"}}},
            {"model_args": {"img_size": [48, 32]}}, {"model_args": {"in_chans": 1}}, {"architecture": 5},
            {"architecture": "hf-hub:timm/vit_tiny_patch16_224"}, {"model_args": {"depth": "many"}},
        ],
    )  # fmt: skip
    def test_a_hostile_or_broken_config_is_reported(self, change, folder, scenes):
        at = folder("plain")
        config = json.loads((at / "config.json").read_text())
        (at / "config.json").write_text(json.dumps(config | change))
        (problem,) = self.problems(f"from: {at}", scenes)
        assert problem.code in ("weights/config", "model/timm"), problem
