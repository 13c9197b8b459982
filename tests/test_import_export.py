"""Public folders into ours and back: every tensor bit for bit, and transformers opens what comes out."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file

import lmmkit
from lmmkit.errors import UserError
from lmmkit.import_export import export_model, import_model
from lmmkit.show_model import show_model
from lmmkit.weights import model_folder
from lmmkit.weights.detect import LLAVA_HF
from lmmkit.weights.pretrained_folder import _spelt
from tests.support import hf_model_folders
from tests.support.fake_llama_tokenizer import write_llama_like


def tensors(folder):
    return {k: t for file in folder.glob("*.safetensors") for k, t in load_file(file).items()}


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """Returns a llava-hf folder as transformers saves one, and its model."""
    folder = tmp_path_factory.mktemp("llava")
    theirs = hf_model_folders.llava("llama", "clip", "plain")
    return hf_model_folders.saved(theirs, folder / "hf"), theirs


def respelt(folder, to, old, new):
    """Copies the folder with its tensors named in another of the published spellings."""
    state = {re.sub(old, new, name): t for name, t in tensors(folder).items()}
    to.mkdir()
    save_file(state, to / "model.safetensors", metadata={"format": "pt"})
    (to / "config.json").write_bytes((folder / "config.json").read_bytes())
    return to


@pytest.mark.parametrize("spelling", ["as saved", "hub", "in memory"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_import_and_export_change_no_bit(spelling, dtype, tmp_path):
    theirs = hf_model_folders.llava("llama", "clip", "plain").to(dtype)
    source = hf_model_folders.saved(theirs, tmp_path / "hf")
    if spelling == "hub":
        source = respelt(
            source, tmp_path / "x", r"^vision_tower\.(?!vision_model)", "vision_tower.vision_model."
        )
    elif spelling == "in memory":
        state = theirs.state_dict()
        (tmp_path / "x").mkdir()
        save_file({k: t.contiguous() for k, t in state.items()}, tmp_path / "x" / "model.safetensors")
        (tmp_path / "x" / "config.json").write_bytes((source / "config.json").read_bytes())
        source = tmp_path / "x"
    import_model(source, tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "back", "llava-hf")
    before, after = tensors(source), tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name
    if spelling == "in memory":
        return
    opened, info = hf.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert opened.dtype == dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", None])
def test_values_are_kept_for_any_type_the_config_names(dtype, tmp_path):
    source = hf_model_folders.saved(hf_model_folders.decoder("qwen2", "grouped"), tmp_path / "hf")
    config = json.loads((source / "config.json").read_text()) | {"dtype": dtype, "torch_dtype": dtype}
    (source / "config.json").write_text(json.dumps(config))
    import_model(source, tmp_path / "ours")
    before, after = tensors(source), tensors(tmp_path / "ours")
    assert torch.equal(before["model.norm.weight"], after["lmm.decoder.norm.weight"])


@pytest.mark.parametrize(
    "text, vision, shape", [("qwen2", "siglip", "tied"), ("qwen3", "clip gelu", "grouped")]
)
def test_other_families_come_back_too(text, vision, shape, tmp_path):
    source = hf_model_folders.saved(hf_model_folders.llava(text, vision, shape), tmp_path / "hf")
    import_model(source, tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "back", "llava-hf")
    before, after = tensors(source), tensors(tmp_path / "back")
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_an_imported_model_says_what_the_public_one_says(llava, tmp_path):
    folder, theirs = llava
    import_model(folder, tmp_path / "ours")
    id_BT, _ = hf_model_folders.ids(131, [20])
    hf_model_folders.with_images(id_BT, torch.ones_like(id_BT), [[4]], 90, 9)
    pixels = torch.randn(1, 3, 30, 30)
    for path in (folder, tmp_path / "ours"):
        ours = lmmkit.load(path, device="cpu")
        with torch.no_grad():
            want = theirs(input_ids=id_BT, pixel_values=pixels).logits
        assert hf_model_folders.error(ours.logits(id_BT, pixels), want) < 1e-5
        assert ours.tokens.image_token == 90


def test_original_llava_comes_and_goes(llava, tmp_path):
    """Imports and exports the original layout of the same weights, pickled as it was published."""
    folder, theirs = llava
    named = {_spelt(name, LLAVA_HF): t for name, t in tensors(folder).items()}
    state = {}
    for name, t in named.items():
        name = name.replace("connector.linear_1", "model.mm_projector.0")
        name = name.replace("connector.linear_2", "model.mm_projector.2")
        name = re.sub(r"^vision\.", "model.vision_tower.vision_tower.vision_model.", name)
        state[name.removeprefix("text.")] = t
    whole = tmp_path / "whole"
    whole.mkdir()
    torch.save(state, whole / "pytorch_model.bin")
    text = json.loads((folder / "config.json").read_text())["text_config"]
    (whole / "config.json").write_text(
        json.dumps(text | {"model_type": "llava_llama", "mm_projector_type": "mlp2x_gelu"})
    )
    clip = tmp_path / "clip"
    tower = hf.CLIPVisionModel(hf_model_folders.VISIONS["clip"])
    tower.load_state_dict({f"vision_model.{k}".removeprefix("vision_model.") if not any(
        n.startswith("vision_model.") for n in tower.state_dict()) else f"vision_model.{k}": t
        for k, t in theirs.model.vision_tower.state_dict().items()})  # fmt: skip
    hf_model_folders.saved(tower, clip)
    with pytest.raises(UserError, match="weights/pickle"):
        import_model(whole, tmp_path / "no", vision=clip)
    import_model(whole, tmp_path / "ours", vision=clip, allow_pickle=True)
    back = lmmkit.load(tmp_path / "ours", device="cpu")
    mine = lmmkit.load(folder, device="cpu")
    id_BT, _ = hf_model_folders.ids(80, [12])
    assert torch.equal(back.logits(id_BT), mine.logits(id_BT))
    export_model(tmp_path / "ours", tmp_path / "original", "llava")
    after = tensors(tmp_path / "original")
    assert after.keys() == state.keys() and all(torch.equal(after[k], state[k]) for k in state)
    import_model(tmp_path / "original", tmp_path / "again")  # the export contains its encoder's shape
    first, second = tensors(tmp_path / "ours"), tensors(tmp_path / "again")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_the_layer_and_the_encoder_of_an_original_llava(llava, layer, tmp_path, caplog):
    """Reads the state that its config names, with the encoder's weights that it contains."""
    folder, _ = llava
    import_model(folder, tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "original", "llava")
    config = json.loads((tmp_path / "original" / "config.json").read_text())
    del config["vision_config"]
    (tmp_path / "original" / "config.json").write_text(json.dumps(config | {"mm_vision_select_layer": layer}))
    tower = hf.CLIPVisionModel(hf_model_folders.VISIONS["clip"])
    hf_model_folders.scramble(tower, 9)
    hf_model_folders.saved(tower, tmp_path / "clip")
    import_model(tmp_path / "original", tmp_path / "again", vision=tmp_path / "clip")
    got = lmmkit.load(tmp_path / "again", device="cpu").objective.lmm.vision
    want = lmmkit.load(folder, device="cpu").objective.lmm.vision
    assert got.shape.feature_layer == layer and "its own are used" in caplog.text
    for name, tensor in want.state_dict().items():
        if name in got.state_dict():
            assert torch.equal(got.state_dict()[name], tensor), name
    behind, there = model_folder.carried_of(tmp_path / "again"), tensors(tmp_path / "original")
    assert "vision.post_layernorm.bias" in behind
    for name, tensor in behind.items():
        assert torch.equal(tensor, there[f"model.vision_tower.vision_tower.vision_model.{name[7:]}"]), name


def test_a_projector_alone_joins_a_base(llava, tmp_path):
    folder, theirs = llava
    named = {_spelt(name, LLAVA_HF): t for name, t in tensors(folder).items()}
    vicuna = tmp_path / "vicuna"
    base = hf_model_folders.decoder("llama", "plain")
    hf_model_folders.saved(base, vicuna)
    projector = tmp_path / "llava-pretrain"
    projector.mkdir()
    names = {"connector.linear_1": "model.mm_projector.0", "connector.linear_2": "model.mm_projector.2"}
    state = {
        names[k.rpartition(".")[0]] + "." + k.rpartition(".")[2]: t for k, t in named.items() if "linear" in k
    }
    torch.save(state, projector / "mm_projector.bin")
    text = json.loads((vicuna / "config.json").read_text())
    (projector / "config.json").write_text(json.dumps(text | {"model_type": "llava_llama"}))
    import_model(projector, tmp_path / "ours", vision=folder, base=vicuna, allow_pickle=True)
    ours = lmmkit.load(tmp_path / "ours", device="cpu")
    id_BT, _ = hf_model_folders.ids(80, [12])
    with torch.no_grad():
        assert hf_model_folders.error(ours.logits(id_BT), base(id_BT).logits) < 1e-5
    own = dict(ours.objective.lmm.connector.named_parameters())
    assert torch.equal(own["second.1.bias"], named["connector.linear_2.bias"])


def test_what_transformers_opens_answers_as_ours(tmp_path):
    """Tokenizer and processor files: same ids, same pixels within a grey level, same greedy tokens."""
    theirs = hf_model_folders.llava("llama", "clip", "plain", image=90)
    theirs.resize_token_embeddings(32_064)
    theirs.config.image_token_index = theirs.config.image_token_id = 32_000
    hf_model_folders.scramble(theirs, 3)
    folder = hf_model_folders.saved(theirs, tmp_path / "hf")
    write_llama_like(folder)
    import_model(folder, tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "back", "llava-hf")
    model = hf.LlavaForConditionalGeneration.from_pretrained(tmp_path / "back").eval()
    processor = hf.AutoProcessor.from_pretrained(tmp_path / "back")
    noise = Image.effect_noise((50, 41), 60).convert("RGB")
    noise.save(tmp_path / "noise.png")
    ready = processor(text="USER: <image>\na cat on the mat ASSISTANT:", images=noise, return_tensors="pt")
    assert (ready.input_ids == 32_000).sum() == 9
    ours = lmmkit.load(tmp_path / "back", device="cpu")
    with torch.no_grad():
        want = model(**ready).logits
    got = ours.logits(ready.input_ids, ready.pixel_values, ready.attention_mask)
    assert hf_model_folders.error(got, want) < 1e-5
    answer = model.generate(**ready, max_new_tokens=12, do_sample=False)[:, ready.input_ids.shape[1] :]
    assert torch.equal(ours.generate(ready.input_ids, ready.pixel_values, max_new_tokens=12), answer)


def test_show_counts_what_transformers_counts(llava):
    folder, theirs = llava
    found = show_model(folder)
    unread = sum(
        p.numel()
        for n, p in theirs.named_parameters()
        if "post_layernorm" in n or "vision_tower.encoder.layers.2" in n
    )
    assert found["total"] == sum(p.numel() for p in theirs.parameters()) - unread


def test_inference_plugins_and_unknown_families_are_refused(llava, tmp_path):
    folder, _ = llava
    import_model(folder, tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    from lmmkit.weights.export import llava_folders
    from lmmkit.weights.export.export_model import Exported

    ours = lmmkit.load(tmp_path / "ours", device="cpu")
    parts = ours.objective.lmm
    model = Exported(
        vision=parts.vision, connector=parts.connector, text=parts.decoder,
        config=config | {"inference_plugins": ["directed_token"]}, tokenizer=ours.prepared.tokenizer,
        passthrough=model_folder.carried_of(tmp_path / "ours"), image_fit="pad", template="vicuna_v1",
    )  # fmt: skip
    (problem,) = llava_folders.problems(model, tmp_path, "llava-hf")
    assert "directed_token" in problem.got and "--format lmmkit" in problem.hint
    unknown = replace(model, config=config | {"family": "gpt2"})
    (problem,) = llava_folders.problems(unknown, tmp_path, "llava-hf")
    assert "gpt2" in problem.got and "qwen3" in problem.expected


class TestBadFolders:
    @pytest.fixture
    def folder(self, llava, tmp_path):
        import shutil

        return shutil.copytree(llava[0], tmp_path / "bad")

    def change(self, folder, edit):
        (file,) = folder.glob("*.safetensors")
        state = load_file(file)
        edit(state)
        save_file(state, file, metadata={"format": "pt"})

    def test_all_that_does_not_fit_is_reported_at_once(self, folder):
        def edit(state):
            names = sorted(n for n in state if "q_proj" in n and "language" in n)
            del state[names[0]]
            state[names[1]] = state[names[1]][:-1].contiguous()
            state["language_model.model.layers.0.bogus.weight"] = torch.zeros(2)
            state["multi_modal_projector.linear_1.bias"] = torch.zeros(48, dtype=torch.int8)

        self.change(folder, edit)
        with pytest.raises(UserError) as raised:
            lmmkit.load(folder)
        codes = sorted(p.code for p in raised.value.problems)
        assert codes == ["weights/dtype", "weights/extra-tensors", "weights/missing-tensors", "weights/shape"]
        assert all(
            re.search(r"\b1 (of another (type|shape)|extra|missing)", p.got) for p in raised.value.problems
        )

    def test_an_unknown_architecture_names_the_known(self, folder):
        (folder / "config.json").write_text('{"model_type": "gpt_neox"}')
        with pytest.raises(UserError, match=r"llama.*mistral"):
            lmmkit.load(folder)

    def test_python_in_a_folder_is_never_run(self, folder):
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {"AutoModel": "modeling_evil.Evil"}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "modeling_evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
        (folder / "__init__.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
        lmmkit.load(folder)
        assert not (folder / "ran").exists()

    @pytest.mark.parametrize(
        "name", ["../x.safetensors", "/etc/passwd", ".hidden.safetensors", "a/b.safetensors"]
    )
    def test_names_that_leave_the_folder_are_refused(self, folder, name):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(UserError, match="weights/index-path"):
            lmmkit.load(folder)

    @pytest.mark.parametrize("indexed", [True, False])
    def test_one_file_beside_shards_is_refused(self, folder, indexed, tmp_path):
        theirs = hf_model_folders.llava("llama", "clip", "plain")
        hf_model_folders.scramble(theirs, 7)
        shards = hf_model_folders.saved(theirs, tmp_path / "shards", max_shard_size="40KB")
        for file in [*shards.glob("*.safetensors"), *shards.glob("*.index.json" if indexed else "-")]:
            (folder / file.name).write_bytes(file.read_bytes())
        with pytest.raises(UserError, match=r"model.safetensors and \d+ shards.*weights/two-sets"):
            lmmkit.load(folder)
        for file in folder.glob("model-*"):
            file.unlink()
        if not indexed:
            lmmkit.load(folder)  # and the one file alone is fine

    def test_safetensors_are_preferred_to_a_pickled_index(self, folder):
        index = {"weight_map": {"lm_head.weight": "pytorch_model-00001-of-00001.bin"}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        (folder / "pytorch_model-00001-of-00001.bin").write_bytes(b"x")
        lmmkit.load(folder)

    @pytest.mark.parametrize("cut", [0, 7, 200, -5])
    def test_a_torn_file_is_reported(self, folder, cut):
        (file,) = folder.glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:cut])
        with pytest.raises(UserError, match="weights/damaged"):
            lmmkit.load(folder)

    def test_a_pickle_that_would_run_code_does_not(self, folder):
        import pickle

        class Evil:
            def __reduce__(self):
                return open, (str(folder / "ran"), "w")

        for file in folder.glob("*.safetensors"):
            file.unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil()}))
        with pytest.raises(UserError, match="weights/pickle"):
            lmmkit.load(folder)
        with pytest.raises(UserError, match="weights/damaged"):
            import_model(folder, folder / "out", allow_pickle=True)
        assert not (folder / "ran").exists()

    @pytest.mark.parametrize(
        "change",
        [
            {"hidden_size": "48"}, {"hidden_size": 0}, {"num_attention_heads": True}, {"hidden_act": "relu"},
            {"rope_scaling": {"rope_type": "longrope", "factor": 2}, "rope_parameters": None},
            {"attention_bias": True}, {"head_dim": 7}, {"num_key_value_heads": 3}, {"hidden_act": ["silu"]},
        ],
    )  # fmt: skip
    def test_settings_that_cannot_be_carried_out_are_reported(self, change, tmp_path):
        folder = hf_model_folders.saved(hf_model_folders.decoder("llama", "plain"), tmp_path / "m")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match="weights/config"):
            lmmkit.load(folder)

    @pytest.mark.parametrize(
        ("change", "lacking"),
        [
            ({"hidden_act": "relu"}, True), ({"partial_rotary_factor": 0.5}, True), ({"mlp_bias": True}, True),
            ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0, "rope_theta": 1e4}}, True),
            ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}}, True),
            ({"quantization_config": {"quant_method": "gptq"}}, True), ({"hidden_size": "48"}, False),
            ({"rope_parameters": {
                "rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4, "rope_theta": 1e4,
                "original_max_position_embeddings": 8,
            }}, False),
            ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}}, False),
        ],
    )  # fmt: skip
    def test_a_feature_that_lmmkit_lacks_is_no_error_of_the_file(self, change, lacking, tmp_path):
        folder = hf_model_folders.saved(hf_model_folders.decoder("llama", "plain"), tmp_path / "m")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match="weights/config") as error:
            lmmkit.load(folder)
        (problem,) = error.value.problems
        assert ("lmmkit does not have this feature" in problem.hint) == lacking
        assert ("Correct the file" in problem.hint) == (not lacking) and next(iter(change)) in problem.where

    @pytest.mark.parametrize(
        "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "base_model.model.", "student.net."]
    )
    @pytest.mark.parametrize("kind", ["llava", "decoder"])
    def test_a_prefix_before_every_name_is_named(self, prefix, kind, folder, tmp_path):
        if kind == "decoder":
            folder = hf_model_folders.saved(hf_model_folders.decoder("qwen2", "tied"), tmp_path / "m")
        (file,) = folder.glob("*.safetensors")
        state = load_file(file)
        save_file({prefix + name: tensor for name, tensor in state.items()}, file, metadata={"format": "pt"})
        with pytest.raises(UserError) as error:
            lmmkit.load(folder)
        (problem,) = error.value.problems
        assert (
            problem.code == "weights/wrapped-names" and f"{len(state)} of {len(state)} names" in problem.got
        )
        assert f"`{prefix}`" in problem.hint and "Download" not in problem.hint

    def test_a_wrapper_inside_the_names_is_named(self, folder):
        (file,) = folder.glob("*.safetensors")
        state = {re.sub(r"(layers\.\d+\.)", r"\1_orig_mod.", n): t for n, t in load_file(file).items()}
        save_file(state, file, metadata={"format": "pt"})
        with pytest.raises(UserError, match=r"`_orig_mod\.`.*weights/wrapped-names"):
            lmmkit.load(folder)

    def test_settings_of_generation_that_are_not_applied_are_reported(self, folder, tmp_path, caplog):
        words = {
            "repetition_penalty": 1.05,
            "temperature": 0.2,
            "no_repeat_ngram_size": 0,
            "eos_token_id": [2, 5],
        }
        (folder / "generation_config.json").write_text(json.dumps(words))
        import_model(folder, tmp_path / "ours")
        assert "repetition_penalty 1.05 not applied" in caplog.text and "ngram" not in caplog.text

    @pytest.mark.parametrize(
        "change",
        [
            {"model": None}, {"model": {}}, {"model": {"text": 3}}, {"stage": []}, {"eos": 5}, {"pad": "x"},
            {"inference_plugins": "x"}, {"image_token": True}, {"prefixes": []}, {"inference_plugins": ["absent"]},
        ],
    )  # fmt: skip
    def test_a_damaged_config_of_ours_is_reported(self, change, llava, tmp_path):
        import_model(llava[0], tmp_path / "ours")
        config = json.loads((tmp_path / "ours" / "config.json").read_text())
        (tmp_path / "ours" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=r"model/(config|plugin-settings)"):
            lmmkit.load(tmp_path / "ours")


def test_a_folder_of_ours_needs_no_import(llava, tmp_path):
    import_model(llava[0], tmp_path / "ours")
    with pytest.raises(UserError, match="convert/already-lmmkit"):
        import_model(tmp_path / "ours", tmp_path / "again")


def test_the_commands(llava, tmp_path):
    from tests.test_cli import run

    folder, _ = llava
    assert "llava-hf" in run("model", "show", folder)
    run("model", "import", folder, tmp_path / "ours")
    assert "convert/exists" in run("model", "import", folder, tmp_path / "ours", code=2)
    run("model", "export", tmp_path / "ours", tmp_path / "back")
    assert json.loads(run("model", "show", tmp_path / "back", "--json"))["kind"] == "llava-hf"


def test_folders_that_a_model_would_not_be_made_of_are_refused(llava, tmp_path):
    folder, _ = llava
    decoder = hf_model_folders.saved(hf_model_folders.decoder("llama", "plain"), tmp_path / "decoder")
    with pytest.raises(UserError, match=r"--base with a model that has its own decoder.*convert/option"):
        import_model(folder, tmp_path / "no", base=decoder)
    with pytest.raises(UserError, match=r"--vision with a decoder alone.*convert/option"):
        import_model(decoder, tmp_path / "no", vision=folder)
    assert not (tmp_path / "no").exists()


def test_low_rank_llava_is_merged_into_its_base(llava, tmp_path):
    folder, theirs = llava
    base = hf_model_folders.decoder("llama", "plain")
    hf_model_folders.saved(base, tmp_path / "vicuna")
    lora = tmp_path / "llava-lora"
    lora.mkdir()
    text = json.loads((tmp_path / "vicuna" / "config.json").read_text())
    (lora / "config.json").write_text(json.dumps(text | {"model_type": "llava_llama"}))
    (lora / "adapter_config.json").write_text(json.dumps({"r": 3, "lora_alpha": 12, "bias": "none"}))
    draw, pairs = torch.Generator().manual_seed(5), {}
    state = base.state_dict()
    for name in [n for n in state if "proj" in n]:
        out, width = state[name].shape
        a, b = torch.randn(3, width, generator=draw) * 0.1, torch.randn(out, 3, generator=draw) * 0.1
        at = f"base_model.model.{name.removesuffix('.weight')}"
        pairs |= {f"{at}.lora_A.weight": a, f"{at}.lora_B.weight": b}
        state[name] = state[name] + 4 * b @ a
    torch.save(pairs, lora / "adapter_model.bin")
    loose = {f"base_model.model.model.mm_projector.{i}.{k}": torch.randn(*s, generator=draw)
             for i, k, s in ((0, "weight", (48, 24)), (0, "bias", (48,)), (2, "weight", (48, 48)), (2, "bias", (48,)))}  # fmt: skip
    torch.save(loose, lora / "non_lora_trainables.bin")
    with pytest.raises(UserError, match="--base"):
        import_model(lora, tmp_path / "no", vision=folder, allow_pickle=True)
    import_model(lora, tmp_path / "ours", vision=folder, base=tmp_path / "vicuna", allow_pickle=True)
    ours = lmmkit.load(tmp_path / "ours", device="cpu")
    base.load_state_dict(state)
    id_BT, _ = hf_model_folders.ids(80, [12])
    with torch.no_grad():
        assert hf_model_folders.error(ours.logits(id_BT), base(id_BT).logits) < 1e-5
    assert torch.equal(
        ours.objective.lmm.connector.first.bias, loose["base_model.model.model.mm_projector.0.bias"]
    )
    options = {"vision": folder, "base": tmp_path / "vicuna", "allow_pickle": True}
    tower = {
        k.removeprefix("vision_model."): t + 1 for k, t in theirs.model.vision_tower.state_dict().items()
    }
    at = "base_model.model.model.vision_tower.vision_tower.vision_model."
    torch.save(loose | {at + k: t for k, t in tower.items()}, lora / "non_lora_trainables.bin")
    import_model(lora, tmp_path / "tuned", **options)  # an encoder that was trained too, as in LLaVA-1.6
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "tuned"))
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor + 1 if "lmm.vision." in name else tensor), name
    more = {"base_model.model.model.embed_tokens.weight": torch.zeros(2)}
    torch.save(loose | more, lora / "non_lora_trainables.bin")
    with pytest.raises(UserError, match=r"1 extra, such as text.model.embed_tokens.*weights/extra-tensors"):
        import_model(lora, tmp_path / "bad", **options)
    torch.save(loose, lora / "non_lora_trainables.bin")
    del pairs[next(iter(pairs))]
    torch.save(pairs, lora / "adapter_model.bin")
    with pytest.raises(UserError, match="weights/adapter"):
        import_model(lora, tmp_path / "bad", vision=folder, base=tmp_path / "vicuna", allow_pickle=True)
