"""A run's low-rank updates as an adapter: the real `peft` on the base says what the merged model says."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers as hf
from PIL import Image as Pil
from safetensors.torch import load_file, save_file

import lmmkit
from lmmkit.errors import MachineError, UserError
from lmmkit.import_export import export_model, import_model
from lmmkit.recipe import dump, read_text
from lmmkit.training.run import train
from lmmkit.verify_export import require_equal, verify_export
from lmmkit.weights import model_folder
from tests.conftest import PLAIN
from tests.data.test_images import noisy_image
from tests.support import hf_model_folders
from tests.support.plain_twins import show
from tests.test_cli import run as command
from tests.weights.test_detect_llava_next import PINPOINTS, ids_of, processor, views_of

# peft asks transformers a question it has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
SHORT = [
    "stages.pretrain.length.steps=2", "stages.finetune.length.steps=4", "stages.finetune.optim.warmup=0.0",
    "stages.finetune.optim.schedule=constant", "speed.tokens=8192",
]  # fmt: skip
LORA = "{r: 3, alpha: 12, dropout: 0.1}"
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 40, "vocab_size": 1000, "max_position_embeddings": 512,
}  # fmt: skip


def llava(scenes, folder, train_keys, *more, kind="llava-hf"):
    """(run, base): a run from a public LLaVA whose second stage trains `train_keys`, and what that began from. It is
    the public model of the folder, if there is one, in the format `kind`."""
    public = folder / "public"
    if not public.exists():
        config = hf.LlavaConfig(
            vision_config=hf_model_folders.VISIONS["clip"],
            text_config=hf.LlamaConfig(**SIZES),
            image_token_index=998,
        )
        hf_model_folders.saved(hf_model_folders.made(hf.LlavaForConditionalGeneration(config)), public)
    changes = [
        f"model.vision={{from: {public}}}", f"model.connector={{kind: mlp2x_gelu, from: {public}}}",
        f"model.text={{from: {public}, context: 256}}", "stages.pretrain.train={connector: {}}", *SHORT,
        f"stages.finetune.train={train_keys}", "stages.finetune.optim.lr=0.05", *more,
    ]  # fmt: skip
    run = train(read_text(PLAIN, overrides=changes, root=scenes), out=folder / "run").run
    export_model(run.model("pretrain"), folder / "base", kind)
    return run, folder / "base"


def wrapped(model: hf.PreTrainedModel, adapter) -> torch.nn.Module:
    """Returns peft's model, with nothing of the adapter left over and nothing of it missing."""
    from peft import PeftModel  # it takes seconds to import: only in the process that runs this file

    opened = PeftModel.from_pretrained(model, adapter).eval()
    stored = load_file(adapter / "adapter_model.safetensors")
    kinds = "lora_", "modules_to_save.default"
    named = {n for n, _ in opened.named_parameters() if any(kind in n for kind in kinds) or n in stored}
    assert {n.replace(".default", "").replace(".modules_to_save", "") for n in named} == set(stored)
    return opened


def check(ours, theirs, base, id_BT, mask_BT, **pixels):
    """Logits within 1e-5 relative, greedy tokens equal; and the adapter matters."""
    with torch.no_grad():
        want = theirs(input_ids=id_BT, attention_mask=mask_BT, **pixels).logits
        bare = base(input_ids=id_BT, attention_mask=mask_BT, **pixels).logits
    got = ours.logits(id_BT, *pixels.values(), attention_mask=mask_BT)
    seen, columns = mask_BT.bool(), got.shape[-1]
    off = hf_model_folders.error(got[seen], want[seen][:, :columns])
    show("off", off)
    assert off < 1e-5
    assert hf_model_folders.error(bare[seen], want[seen]) > 1e-2
    options = {"max_new_tokens": 24, "eos_token_id": [10**6]}
    generated = theirs.generate(
        input_ids=id_BT, attention_mask=mask_BT, do_sample=False, pad_token_id=0, **pixels, **options
    )
    mine = ours.generate(id_BT, *pixels.values(), attention_mask=mask_BT, **options)
    assert torch.equal(mine, generated[:, id_BT.shape[1] :])


@pytest.fixture(scope="module")
def alone(scenes, tmp_path_factory):
    """Exports the adapter of a stage that trained nothing else."""
    return llava(scenes, tmp_path_factory.mktemp("alone"), f"{{text: {{lora: {LORA}}}}}")


@pytest.fixture(scope="module")
def beside(scenes, tmp_path_factory):
    """Exports the adapter of a stage that trained the connector too."""
    parts = f"{{connector: {{lr: 1.0e-3}}, text: {{lora: {LORA}}}}}"
    return llava(scenes, tmp_path_factory.mktemp("beside"), parts)


@pytest.mark.parametrize("name, saved", [("alone", False), ("beside", True)])
def test_an_adapter_of_llava(name, saved, request, tmp_path):
    run, base = request.getfixturevalue(name)
    export_model(run.path, tmp_path / "adapter", "peft", base="somebody/llava")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (3, 12, 0.1)
    assert config["base_model_name_or_path"] == "somebody/llava"
    assert config["modules_to_save"] == (["multi_modal_projector"] if saved else None)
    theirs = wrapped(hf.LlavaForConditionalGeneration.from_pretrained(base), tmp_path / "adapter")
    ours = lmmkit.load(run.path, device="cpu")
    id_BT, mask_BT = hf_model_folders.ids(300, [30, 17], side="left")
    hf_model_folders.with_images(id_BT, mask_BT, [[3], [19]], ours.tokens.image_token, 9)
    bare = hf.LlavaForConditionalGeneration.from_pretrained(base).eval()
    pixels = torch.randn(2, 3, 30, 30, generator=torch.Generator().manual_seed(0))
    check(ours, theirs, bare, id_BT, mask_BT, pixel_values=pixels)


def test_an_adapter_of_a_base_frozen_in_bfloat16(scenes, tmp_path):
    """Compares within bfloat16: merged weights are rounded once more than base and adapter."""
    run, base = llava(scenes, tmp_path, f"{{text: {{lora: {LORA}}}}}", "numerics.frozen=bfloat16")
    export_model(run.path, tmp_path / "adapter", "peft")
    theirs = wrapped(hf.LlavaForConditionalGeneration.from_pretrained(base), tmp_path / "adapter")
    id_BT, _ = hf_model_folders.ids(300, [30])
    with torch.no_grad():
        want = theirs(input_ids=id_BT).logits
    got = lmmkit.load(run.path, device="cpu").logits(id_BT)
    off = hf_model_folders.error(got, want[..., : got.shape[-1]])
    show("off_bfloat16", off)
    assert 1e-5 < off < 5e-2


def decoder(scenes, folder, config, train_keys):
    """(run, base): a run of text alone on a public decoder."""
    public = hf_model_folders.saved(
        hf_model_folders.made(hf.AutoModelForCausalLM.from_config(config)), folder / "public"
    )
    rows = [
        {
            "id": str(i),
            "conversations": [{"from": "human", "value": f"a {i}"}, {"from": "gpt", "value": "red bars"}],
        }
        for i in range(8)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    text = "".join(
        line for line in PLAIN.splitlines(True) if not line.startswith(("  vision:", "  connector:"))
    )
    changes = [
        f"model.text={{from: {public}, context: 256}}", *SHORT, "stages.finetune.optim.lr=0.05",
        *(f"stages.{stage}.data={{questions: 1.0}}" for stage in ("pretrain", "finetune")),
        f"data.questions.records={folder / 'rows.json'}", f"stages.pretrain.train={train_keys}",
        f"stages.finetune.train={train_keys}",
    ]  # fmt: skip
    return train(read_text(text, overrides=changes, root=scenes), out=folder / "run").run, public


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_an_adapter_of_a_decoder(family, scenes, tmp_path):
    """Some projections only; the base is the public folder itself: the first stage of two, from its model folder."""
    run, base = decoder(
        scenes,
        tmp_path,
        hf_model_folders.DECODERS[family](**SIZES),
        "{text: {lora: {r: 2, alpha: 5, targets: [q, v, up, down]}}}",
    )
    export_model(run.model("pretrain"), tmp_path / "adapter", "peft")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj", "up_proj", "down_proj"]
    assert (config["lora_alpha"], config["modules_to_save"], config["base_model_name_or_path"]) == (
        5,
        None,
        None,
    )
    theirs = wrapped(hf.AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    ours = lmmkit.load(run.model("pretrain"), device="cpu")
    import_model(tmp_path / "adapter", tmp_path / "again", base=base)
    want, got = (load_file(f / "model.safetensors") for f in (run.model("pretrain"), tmp_path / "again"))
    assert want.keys() == got.keys() and all(torch.equal(want[name], got[name]) for name in want)
    id_BT, mask_BT = hf_model_folders.ids(300, [30, 17], side="left")
    check(ours, theirs, hf.AutoModelForCausalLM.from_pretrained(base).eval(), id_BT, mask_BT)


@pytest.mark.parametrize("name", ["alone", "beside"])
@pytest.mark.parametrize("base", ["llava-hf", "lmmkit"])
def test_an_exported_adapter_is_imported_again(name, base, request, tmp_path):
    """Merges it into the base that it was trained on: the weights are those of the run, bit for bit."""
    run, public = request.getfixturevalue(name)
    export_model(run.path, tmp_path / "adapter", "peft", base="somebody/llava")
    with pytest.raises(UserError, match=r"somebody/llava.*weights/adapter"):
        import_model(tmp_path / "adapter", tmp_path / "no")
    import_model(
        tmp_path / "adapter", tmp_path / "ours", base=public if base == "llava-hf" else run.model("pretrain")
    )
    want, got = (
        load_file(folder / "model.safetensors") for folder in (run.model("finetune"), tmp_path / "ours")
    )
    grown = {"lmm.decoder.embed.weight", "lmm.decoder.head.weight"}
    assert want.keys() == got.keys()
    for tensor in want:
        rows = len(want[tensor]) if tensor in grown else None
        assert torch.equal(want[tensor], got[tensor][:rows]), tensor
    mine, theirs = (lmmkit.load(folder, device="cpu") for folder in (tmp_path / "ours", run.path))
    id_BT, _ = hf_model_folders.ids(300, [30])
    assert torch.equal(mine.logits(id_BT)[..., :1000], theirs.logits(id_BT)[..., :1000])
    assert mine.tokens.image_token == theirs.tokens.image_token


def test_an_adapter_with_more_than_updates_is_refused(alone, tmp_path):
    run, public = alone
    export_model(run.path, tmp_path / "adapter", "peft")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    state = load_file(file)
    save_file(state | {"base_model.model.lm_head.weight": torch.zeros(2)}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"1 extra, such as text.lm_head.weight.*weights/extra-tensors"):
        import_model(tmp_path / "adapter", tmp_path / "ours", base=public)
    tower = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_A.weight"
    save_file(state | {tower: torch.zeros(2, 2)}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"vision_tower.*no matrix.*weights/adapter"):
        import_model(tmp_path / "adapter", tmp_path / "ours", base=public)
    save_file(state, file, {"format": "pt"})
    with pytest.raises(UserError, match="convert/option"):
        import_model(tmp_path / "adapter", tmp_path / "ours", base=public, vision=public)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"LORA"', '"IA3"'))
    with pytest.raises(UserError, match="IA3"):
        import_model(tmp_path / "adapter", tmp_path / "ours", base=public)
    assert not (tmp_path / "ours").exists()


def test_the_merged_folder_is_as_it_was(alone):
    """One file more, and its factors are what the weights were merged with."""
    run, _ = alone
    before, after = run.model("pretrain"), run.model("finetune")
    assert {f.name for f in after.iterdir()} - {f.name for f in before.iterdir()} == {"lora.safetensors"}
    old, new, pairs = (
        load_file(before / "model.safetensors"),
        load_file(after / "model.safetensors"),
        model_folder.updates_of(after),
    )
    assert old.keys() == new.keys() and len(pairs) == 2 * 7 * 2
    merged = old["lmm.decoder.blocks.1.mlp.gate_up.weight"].clone()
    for rows, part in (slice(0, 40), "gate"), (slice(40, 80), "up"):
        a, b = (pairs[f"lmm.decoder.blocks.1.mlp.gate_up.lora.{part}.{side}"] for side in "ab")
        merged[rows] += 12 / 3 * (b @ a)
    assert torch.equal(merged, new["lmm.decoder.blocks.1.mlp.gate_up.weight"])


TILES = "{kind: anyres, grids: [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]}"


@pytest.fixture(scope="module")
def tiled(scenes, tmp_path_factory):
    """Exports the adapter of a stage of a LLaVA-NeXT that trained nothing else; the stage before trained the newline
    row."""
    folder = tmp_path_factory.mktemp("tiled")
    config = hf.LlavaNextConfig(
        vision_config=hf_model_folders.VISIONS["clip"], text_config=hf.LlamaConfig(**SIZES),
        image_token_index=998, image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    made = hf_model_folders.made(hf.LlavaNextForConditionalGeneration(config))
    hf_model_folders.saved(made, folder / "public")
    fits = [f"{key}.image_fit={TILES}" for key in ("model.chat", "data.captions", "data.questions")]
    return llava(
        scenes, folder, f"{{text: {{lora: {LORA}}}}}", *fits, "model.text.context=400", kind="llava-next"
    )


def test_an_adapter_of_a_model_that_cuts_images_into_tiles(tiled, tmp_path):
    run, base = tiled
    export_model(run.path, tmp_path / "adapter", "peft")
    require_equal(tmp_path / "adapter", verify_export(run.path, tmp_path / "adapter", "peft"))
    opened = hf.LlavaNextForConditionalGeneration.from_pretrained
    bare, before = opened(base).eval(), opened(base.parent / "public")
    assert not torch.equal(bare.model.image_newline, before.model.image_newline), "trained in the first stage"
    theirs = wrapped(opened(base), tmp_path / "adapter")
    ours = lmmkit.load(run.path, device="cpu")
    noisy_image(90, 31).save(tmp_path / "wide.png")
    (view,) = views_of(ours, [[str(tmp_path / "wide.png")]])
    (got,) = ours.prompt_logits([view])
    inputs = processor()([Pil.open(tmp_path / "wide.png")], return_tensors="pt")
    id_1T = torch.tensor([ids_of(ours, bare, view)])
    with torch.no_grad():
        want, without = (model(input_ids=id_1T, **inputs).logits[0] for model in (theirs, bare))
    rows = got.shape[1]
    assert hf_model_folders.error(got, want[:, :rows]) < 1e-5 < hf_model_folders.error(without, want)
    for there in (base, run.model("pretrain")):
        import_model(tmp_path / "adapter", tmp_path / there.name, base=there)
        merged = lmmkit.load(tmp_path / there.name, device="cpu")
        own, kept = (str(each.prepared.recipe.model.chat.image_fit) for each in (ours, merged))
        assert own == kept == "anyres 1x2, 2x1, 2x2, 3x1, 1x3"
        assert torch.equal(merged.prompt_logits([view])[0][:, :rows], got)


def test_a_newline_row_that_was_trained_is_in_the_adapter(tiled, tmp_path):
    """Gives the model of the stage another connector, and a recipe that trained it."""
    run, base = tiled
    folder, adapter = shutil.copytree(run.model("finetune"), tmp_path / "model"), tmp_path / "adapter"
    text, state = (folder / "recipe.yaml").read_text(), load_file(folder / "model.safetensors")
    changed = text.replace("train:\n      text:", "train:\n      connector: {}\n      text:")
    assert changed != text
    (folder / "recipe.yaml").write_text(changed)
    state = {n: t + 0.1 * torch.randn_like(t) if "connector" in n else t for n, t in state.items()}
    save_file(state, folder / "model.safetensors")
    export_model(folder, adapter, "peft")
    require_equal(adapter, verify_export(folder, adapter, "peft"))
    theirs = wrapped(hf.LlavaNextForConditionalGeneration.from_pretrained(base), adapter)
    ours = lmmkit.load(folder, device="cpu")
    noisy_image(90, 31).save(tmp_path / "wide.png")
    (view,) = views_of(ours, [[str(tmp_path / "wide.png")]])
    (got,) = ours.prompt_logits([view])
    inputs = processor()([Pil.open(tmp_path / "wide.png")], return_tensors="pt")
    id_1T = torch.tensor([ids_of(ours, theirs, view)])
    with torch.no_grad():
        want = theirs(input_ids=id_1T, **inputs).logits[0]
    off = hf_model_folders.error(got, want[:, : got.shape[1]])
    show("off_newline", off)
    assert off < 1e-5
    alone = hf.LlavaNextForConditionalGeneration.from_pretrained(base)
    before = alone.model.image_newline.clone()
    alone.load_adapter(adapter)  # transformers without a `PeftModel`
    own = state["lmm.connector.newline.row"]
    assert torch.equal(alone.model.image_newline, own) and not torch.equal(before, own)
    import_model(adapter, tmp_path / "again", base=base)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[name][: len(t)], t) for name, t in state.items())
    row = "base_model.model.model.image_newline"
    rewritten(adapter, lambda s: s.update({row: s[row] + 1}))
    assert {e.what for e in verify_export(folder, adapter, "peft") if e.equal is False} == {"connector"}


def test_what_an_adapter_cannot_have_of_images_by_their_shape_is_refused(tiled, tmp_path):
    run, base = tiled
    folder = shutil.copytree(run.model("finetune"), tmp_path / "model")
    text = (folder / "recipe.yaml").read_text()
    keys = "model.chat", "data.captions", "data.questions", "data.heldout", "data.heldout_captions"
    native = [f"{key}.image_fit={{kind: native, max_patches: 9}}" for key in keys]
    (folder / "recipe.yaml").write_text(dump(read_text(text, overrides=native)))
    with pytest.raises(UserError, match=r"keep their shape.*export/unsupported-part"):
        export_model(folder, tmp_path / "adapter", "peft")
    export_model(run.path, tmp_path / "adapter", "peft")
    saved = {f"base_model.model.model.{name}": tensor for name, tensor in projector(base).items()}
    rewritten(tmp_path / "adapter", lambda state: state.update(saved))
    with pytest.raises(UserError, match="1 missing: newline") as error:  # others' adapters, whose base has it
        import_model(tmp_path / "adapter", tmp_path / "ours", base=base)
    assert "merge the adapter with `peft` into its base" in error.value.problems[0].hint


def projector(base) -> dict[str, torch.Tensor]:
    state = load_file(base / "model.safetensors")
    at = {name: name.partition("multi_modal_projector.")[2] for name in state}
    return {f"multi_modal_projector.{part}": state[name] for name, part in at.items() if part}


def rewritten(folder, change) -> None:
    """Changes the tensors of an adapter's file."""
    file = folder / "adapter_model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


def swapped(state) -> None:
    """Gives the factors of gate to up, and those of up to gate: their shapes are equal."""
    for name in [name for name in state if ".gate_proj." in name]:
        other = name.replace("gate_proj", "up_proj")
        state[name], state[other] = state[other].clone(), state[name].clone()


def first(state, part: str) -> torch.Tensor:
    return state[next(name for name in sorted(state) if part in name)]


SPOILT = {
    "a factor": (lambda f: rewritten(f, lambda s: first(s, ".lora_B.").view(-1)[3:4].add_(1)), {"factors"}),
    "two factors": (lambda f: rewritten(f, swapped), {"factors"}),
    "a factor too few": (lambda f: rewritten(f, lambda s: s.pop(min(n for n in s if ".lora_A." in n))), {"factors"}),
    "a tensor too many": (lambda f: rewritten(f, lambda s: s.update({"base_model.model.lm_head.weight": torch.zeros(2)})), {"factors"}),
    "the connector": (lambda f: rewritten(f, lambda s: first(s, "linear_2.bias").add_(1)), {"connector"}),
    "alpha": (lambda f: (f / "adapter_config.json").write_text(
        (f / "adapter_config.json").read_text().replace('"lora_alpha": 12', '"lora_alpha": 6')), {"scale"}),
}  # fmt: skip


def compared(run, folder) -> dict[str, bool | None]:
    return {each.what: each.equal for each in verify_export(run.path, folder, "peft")}


def test_an_adapter_is_verified_without_its_base(alone, beside, tmp_path):
    rest = {"logits": None, "answers": None}
    for name, (run, _), connector in ("alone", alone, None), ("beside", beside, True):
        text = command("model", "export", run.path, tmp_path / name, "--format", "peft", "--verify")
        assert "28, bit for bit" in text and "alpha / r is 4" in text and "import --base" in text
        assert (
            compared(run, tmp_path / name) == {"factors": True, "scale": True, "connector": connector} | rest
        )


@pytest.mark.parametrize("name", SPOILT)
def test_a_difference_of_an_adapter_is_found_and_named(name, beside, tmp_path):
    run, _ = beside
    export_model(run.path, tmp_path / "adapter", "peft")
    spoil, named = SPOILT[name]
    spoil(tmp_path / "adapter")
    found = verify_export(run.path, tmp_path / "adapter", "peft")
    assert {each.what for each in found if each.equal is False} == named
    with pytest.raises(MachineError, match="export/differs"):
        require_equal(tmp_path / "adapter", found)


class TestRefused:
    def test_a_stage_without_updates(self, alone, tmp_path):
        run, base = alone
        import_model(base, tmp_path / "imported")
        for folder, stage in (run.model("pretrain"), "pretrain"), (tmp_path / "imported", "imported"):
            text = command("model", "export", folder, tmp_path / "adapter", "--format", "peft", code=2)
            assert "export/no-lora" in text and f"`{stage}`" in text and "Export the whole model" in text
        assert not (tmp_path / "adapter").exists()

    def test_a_stage_that_trained_its_encoder_too(self, alone, tmp_path):
        folder = shutil.copytree(alone[0].model("finetune"), tmp_path / "model")
        text = (folder / "recipe.yaml").read_text()
        changed = text.replace("train:\n      text:", "train:\n      vision: {}\n      text:")
        assert changed != text
        (folder / "recipe.yaml").write_text(changed)
        with pytest.raises(UserError, match="export/trained-encoder"):
            export_model(folder, tmp_path / "adapter", "peft")

    def test_options_of_other_formats_and_a_torn_file(self, alone, tmp_path):
        folder = shutil.copytree(alone[0].model("finetune"), tmp_path / "model")
        with pytest.raises(UserError, match="--dtype with --format peft"):
            export_model(folder, tmp_path / "adapter", "peft", dtype=torch.float16)
        with pytest.raises(UserError, match="--base with --format llava"):
            export_model(folder, tmp_path / "adapter", "llava", base="x")
        (folder / "lora.safetensors").write_bytes(b"torn")
        with pytest.raises(UserError, match="model/damaged"):
            export_model(folder, tmp_path / "adapter", "peft")
