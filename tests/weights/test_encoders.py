"""An encoder alone: imported, looked at, named in a recipe, and handed back whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import transformers as hf
from safetensors.torch import load_file
from timm.models import save_for_hf

import lmmkit
from lmmkit import build
from lmmkit.errors import UserError
from lmmkit.import_export import export_model, import_model
from lmmkit.plan.prepare import prepare
from lmmkit.show_model import show_model
from lmmkit.training.run import train
from lmmkit.weights.detect import ENCODER, LLAVA_HF
from lmmkit.weights.pretrained_folder import _spelt
from tests.conftest import PLAIN
from tests.support import hf_model_folders
from tests.support.hf_weights import scramble
from tests.test_cli import run
from tests.weights.test_timm_encoder import KINDS


def public_encoder(kind: str, folder: Path) -> Path:
    """Writes a public encoder's folder."""
    if kind == "timm":
        model = timm.create_model(
            KINDS["clip"][0], pretrained=False, img_size=30, patch_size=10, **KINDS["clip"][1]
        )
        scramble(model, 2)
        save_for_hf(model, folder, safe_serialization=True)
        return folder
    return hf_model_folders.saved(
        hf_model_folders.made(hf.AutoModel.from_config(hf_model_folders.VISIONS[kind])), folder
    )


def pickled(folder: Path) -> Path:
    """Changes the folder to what many encoders are published as: a .bin file alone."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def built(recipe):
    prepared = prepare(recipe)
    return build.build_objective(
        prepared.recipe, {}, prepared.dims, torch.device("cpu"), pretrained=prepared.pretrained
    ).lmm.vision.eval()


@pytest.mark.parametrize("kind", ["clip", "siglip", "timm"])
def test_an_imported_encoder_is_the_public_one_at_every_layer(kind, tiny, tmp_path):
    public = public_encoder(kind, tmp_path / "encoder")
    assert import_model(public, tmp_path / "ours") == ("vision",)
    pixels = torch.randn(2, 3, 30, 30)
    for layer in ("", ", feature_layer: -1", ", feature_layer: -2", ", feature_layer: 1"):
        with torch.no_grad():
            ours, theirs = (
                built(tiny(f"model.vision={{from: {at}{layer}}}", text=PLAIN))(pixels)
                for at in (tmp_path / "ours", public)
            )
        assert torch.equal(ours, theirs), layer


def test_a_pickled_encoder_goes_through_a_run_and_comes_back_whole(tiny, tmp_path):
    """Trains on a pickled encoder, as the paper's recipes do: CLIP-L/336 was published as a .bin file."""
    before = load_file(public_encoder("clip", tmp_path / "encoder") / "model.safetensors")
    public = pickled(tmp_path / "encoder")
    with pytest.raises(UserError, match="model import SRC DST --allow-pickle"):
        built(tiny(f"model.vision={{from: {public}}}", text=PLAIN))
    run("model", "import", public, tmp_path / "ours", "--allow-pickle")
    recipe = tiny(
        f"model.vision={{from: {tmp_path / 'ours'}}}", "stages.pretrain.length.steps=1",
        "stages.finetune.length.steps=1", "stages.pretrain.train={connector: {}}", "speed.tokens=8192", text=PLAIN,
    )  # fmt: skip
    out = train(recipe, out=tmp_path / "run").run
    export_model(out.path, tmp_path / "back", "llava-hf")
    after = load_file(tmp_path / "back" / "model.safetensors")
    after = {_spelt(name, LLAVA_HF): tensor for name, tensor in after.items()}
    for name, tensor in before.items():
        assert torch.equal(after[_spelt(name, ENCODER)], tensor), name
    opened, info = hf.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert opened.config.vision_feature_layer == -2


def test_llava_s_projector_joins_an_imported_encoder(tmp_path):
    """`--vision` takes a folder of ours."""
    base = hf_model_folders.saved(hf_model_folders.decoder("llama", "plain"), tmp_path / "base")
    projector = tmp_path / "projector"
    projector.mkdir()
    shapes = {"0.weight": (48, 24), "0.bias": (48,), "2.weight": (48, 48), "2.bias": (48,)}
    torch.save(
        {f"model.mm_projector.{n}": torch.randn(s) for n, s in shapes.items()}, projector / "mm_projector.bin"
    )
    text = json.loads((base / "config.json").read_text())
    (projector / "config.json").write_text(
        json.dumps(text | {"model_type": "llava_llama", "image_aspect_ratio": "square"})
    )
    import_model(public_encoder("clip", tmp_path / "encoder"), tmp_path / "ours")
    states = []
    for vision in (tmp_path / "encoder", tmp_path / "ours"):
        out = tmp_path / f"model-{vision.name}"
        import_model(projector, out, vision=vision, base=base, allow_pickle=True)
        ours = lmmkit.load(out, device="cpu")
        assert ours.prepared.recipe.model.chat.image_fit == "crop"  # square: what CLIP's processor does
        states.append(ours.objective.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_llava_s_own_layer_is_read_where_the_recipe_names_none(tiny, tmp_path):
    public = hf_model_folders.saved(
        hf_model_folders.llava("llama", "clip", "plain", layer=-1), tmp_path / "hf"
    )
    depths = [len(built(tiny(f"model.vision={{from: {public}{layer}}}", text=PLAIN)).blocks)
              for layer in ("", ", feature_layer: -2")]  # fmt: skip
    assert depths == [3, 2]


def test_an_encoder_inside_a_llava_is_never_left_out_for_one_of_timm(tmp_path):
    llava = hf_model_folders.saved(hf_model_folders.llava("llama", "clip", "plain"), tmp_path / "llava")
    args = {"img_size": 30, "patch_size": 10, "embed_dim": 24, "depth": 2, "num_heads": 2}
    model = timm.create_model(KINDS["clip"][0], pretrained=False, **args)
    save_for_hf(model, tmp_path / "timm", model_args=args, safe_serialization=True)
    with pytest.raises(UserError, match=r"extra, such as vision.*CLIP or SigLIP.*weights/extra-tensors"):
        import_model(llava, tmp_path / "no", vision=tmp_path / "timm")


@pytest.mark.parametrize("kind", ["clip", "siglip", "timm"])
def test_show(kind, tmp_path):
    public = public_encoder(kind, tmp_path / "encoder")
    import_model(public, tmp_path / "ours")
    theirs, ours = show_model(public), show_model(tmp_path / "ours")
    assert set(theirs["parameters"]) == {"vision"} and ours["total"] > theirs["total"]  # every block of it
    output = run("model", "show", tmp_path / "ours")
    assert "vision" in output and "chat" not in output
    assert json.loads(run("model", "show", public, "--json"))["kind"] == theirs["kind"]


class TestBad:
    @pytest.fixture
    def ours(self, tmp_path):
        import_model(public_encoder("clip", tmp_path / "encoder"), tmp_path / "ours")
        return tmp_path / "ours"

    def test_an_encoder_does_not_answer(self, ours, tmp_path):
        for at in (ours, tmp_path / "encoder"):
            with pytest.raises(UserError, match=r"model\.vision\.from"):
                lmmkit.load(at)
            assert "model/no-text" in run("chat", at, "--prompt", "x", code=2)
        with pytest.raises(UserError, match="no-text"):
            export_model(ours, tmp_path / "out", "llava-hf")

    def test_options_of_a_decoder_are_refused(self, ours, tmp_path):
        with pytest.raises(UserError, match=r"--base, --template"):
            import_model(tmp_path / "encoder", tmp_path / "no", base=tmp_path, template="plain")

    def test_it_gives_no_other_part(self, ours, tiny):
        with pytest.raises(UserError, match="weights/missing-part"):
            prepare(tiny(f"model.text={{from: {ours}, context: 80}}", text=PLAIN))

    def test_a_layer_that_there_is_not(self, tiny, tmp_path):
        """Reports the encoder's folder, not the LLaVA that gives the connector."""
        llava = hf_model_folders.saved(hf_model_folders.llava("llama", "clip", "plain"), tmp_path / "hf")
        changes = [f"model.vision={{from: {public_encoder('siglip', tmp_path / 'encoder')}, feature_layer: -9}}",
                   f"model.connector={{kind: mlp2x_gelu, from: {llava}}}"]  # fmt: skip
        with pytest.raises(UserError) as raised:
            prepare(tiny(*changes, text=PLAIN))
        (problem,) = raised.value.problems
        assert problem.code == "model/feature-layer" and "-4 to 3" in problem.expected

    def test_a_layer_that_a_folder_of_ours_does_not_hold(self, tiny, tmp_path):
        import_model(
            hf_model_folders.saved(hf_model_folders.llava("llama", "clip", "plain"), tmp_path / "hf"),
            tmp_path / "llava",
        )
        with pytest.raises(UserError, match=r"state up to 2: .*model/feature-layer"):
            prepare(tiny(f"model.vision={{from: {tmp_path / 'llava'}, feature_layer: -1}}", text=PLAIN))
        prepare(tiny(f"model.vision={{from: {tmp_path / 'llava'}, feature_layer: 1}}", text=PLAIN))


PIXELS = {"do_center_crop": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}


@pytest.mark.parametrize(
    ("change", "known"),
    [
        ({}, True), ({"size": 30, "crop_size": 30}, True), ({"rescale_factor": 0.00392156862745098}, True),
        ({"size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}, "do_normalize": True}, True),
        ({"do_normalize": False}, False), ({"do_rescale": False}, False), ({"do_resize": False}, False),
        ({"rescale_factor": 0.00784313725490196}, False), ({"size": {"shortest_edge": 34}, "crop_size": 30}, False),
        ({"size": {"height": 30, "width": 40}}, False),
    ],
)  # fmt: skip
def test_a_step_of_an_image_processor_that_lmmkit_lacks_is_refused_by_name(change, known, tmp_path):
    public = public_encoder("clip", tmp_path / "encoder")
    (public / "preprocessor_config.json").write_text(json.dumps(PIXELS | change))
    if known:
        assert import_model(public, tmp_path / "ours") == ("vision",)
        return
    with pytest.raises(UserError, match="weights/config") as error:
        import_model(public, tmp_path / "ours")
    (problem,) = error.value.problems
    assert (
        f"preprocessor_config.json: {next(iter(change))}" in problem.where and "does not have" in problem.hint
    )
