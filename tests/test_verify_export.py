"""An export opened again: equal for every template and family; every difference is found and named."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lmmkit
from lmmkit.errors import MachineError, UserError
from lmmkit.import_export import export_model, import_model
from lmmkit.verify_export import prompts_of, require_equal, verify_export
from tests.support import chat_folders, hf_model_folders
from tests.test_cli import run as command

TEMPLATES = {
    "plain": ("pieces", "qwen base"), "vicuna_v1": ("pieces", "llama3 base"), "chatml": ("qwen base", "pieces chat"),
    "llama3": ("llama3 base", "llama3 chat"),
}  # fmt: skip
PAIRS = [
    (template, family, tokenizers[i % 2], ("clip", "siglip", "clip gelu")[i % 3])
    for template, tokenizers in TEMPLATES.items()
    for i, family in enumerate(hf_model_folders.DECODERS)
]
MADE = {"tensors", "logits", "pixels", "ids, bare prompt", "answer to an image", "answer to a text"}
TEMPLATED = {"ids, template's text", "ids, tokenizer's text", "ids, template at once"}
LONE = "ids, tokenizer at once"  # transformers adds no first token there


def imported(folder: Path, template: str, family: str, tokenizer: str, vision: str = "clip") -> Path:
    """Imports a public LLaVA with random weights."""
    public = chat_folders.llava(folder / "hf", family, tokenizer, vision=vision, eos=[300, 5])
    import_model(public, folder / "ours", template=template)
    return folder / "ours"


def wrong(found) -> set[str]:
    return {each.what for each in found if each.equal is False}


@pytest.mark.parametrize(("template", "family", "tokenizer", "vision"), PAIRS)
def test_every_template_on_every_family(template, family, tokenizer, vision, tmp_path):
    ours = imported(tmp_path, template, family, tokenizer, vision)
    export_model(ours, tmp_path / "out", "llava-hf")
    found = verify_export(ours, tmp_path / "out", "llava-hf")
    require_equal(tmp_path / "out", found)
    begins = template == "llama3" or (template == "vicuna_v1" and tokenizer != "qwen base")
    templated = set() if template == "plain" else TEMPLATED if begins else {*TEMPLATED, LONE}
    assert {each.what for each in found if each.equal} == MADE | templated
    left = {each.what: each.result for each in found if each.equal is None}
    assert list(left) == (["ids, template"] if template == "plain" else [LONE] if begins else [])
    assert not begins or "lacks `<" in left[LONE]


@pytest.mark.parametrize(
    ("template", "tokenizer", "lacks"),
    [
        ("chatml", "pieces", "<|im_start|>"), ("chatml", "llama3 chat", "<|im_start|>"), ("llama3", "pieces", "<|eot_id|>"),
        ("llama3", "qwen base", "<|begin_of_text|>"), ("llama2", "pieces", "`llama2`"),
    ],
)  # fmt: skip
def test_a_template_that_does_not_fit_its_tokenizer_is_refused_by_name(template, tokenizer, lacks, tmp_path):
    public = chat_folders.llava(tmp_path / "hf", "llama", tokenizer)
    with pytest.raises(UserError, match=r"chat/(control-tokens|unknown-template)") as error:
        import_model(public, tmp_path / "ours", template=template)
    (problem,) = error.value.problems
    assert template in problem.got and lacks in problem.got


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Returns a model of ours."""
    return imported(tmp_path_factory.mktemp("good"), "vicuna_v1", "llama", "pieces")


@pytest.fixture(scope="module")
def exported(good, tmp_path_factory):
    """Returns its export, which tests copy."""
    export_model(good, folder := tmp_path_factory.mktemp("exported") / "out", "llava-hf")
    return folder


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def add_one(folder: Path, name: str) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    state[name].view(-1)[0] += 1
    save_file(state, file, metadata={"format": "pt"})


def turn(folder: Path) -> None:
    """Changes the base of the rotary positions."""
    text = json.loads((folder / "config.json").read_text())["text_config"]
    rope = {"rope_theta": 77.0, "rope_parameters": {"rope_theta": 77.0, "rope_type": "default"}}
    edit(folder / "config.json", text_config=text | rope)


def add_first(folder: Path, first: str = "<s>{{ ' ' }}") -> None:
    """Makes the chat template begin with a token, or with other text."""
    file = folder / "chat_template.jinja"
    file.write_text(first + file.read_text())


def add_other(folder: Path) -> None:
    """Gives the processor, but not its tokenizer, another chat template."""
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "x" + text}))


SPOILT = {
    "a tensor": (lambda f: add_one(f, "language_model.model.layers.0.mlp.up_proj.weight"), {"tensors", "logits"}),
    "a tensor that nothing reads": (lambda f: add_one(f, "vision_tower.post_layernorm.bias"), {"tensors"}),
    "the mean": (lambda f: edit(f / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5]), {"pixels"}),
    "no first token": (lambda f: edit(f / "tokenizer_config.json", add_bos_token=False), {"ids, bare prompt", *TEMPLATED}),
    "two first tokens": (add_first, {"ids, template's text", "ids, tokenizer's text"}),
    "another template for the processor": (add_other, {"ids, template's text", "ids, template at once"}),
    "a letter too many": (lambda f: add_first(f, "x"), {*TEMPLATED, LONE}),
    "the base of the positions": (turn, {"logits"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_a_difference_is_found_and_named(name, good, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "out")
    spoil, named = SPOILT[name]
    spoil(tmp_path / "out")
    found = verify_export(good, tmp_path / "out", "llava-hf")
    assert named <= wrong(found) and not wrong(found) - named - {"answer to an image", "answer to a text"}
    with pytest.raises(MachineError, match="export/differs") as error:
        require_equal(tmp_path / "out", found)
    assert len(error.value.problems) == len(wrong(found))


def test_too_little_memory_is_no_difference(good, exported, monkeypatch):
    monkeypatch.setattr(
        "lmmkit.verify_export.by_transformers._generated",
        lambda *given: torch.empty(2**50, dtype=torch.uint8),
    )
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        verify_export(good, exported, "llava-hf")


def test_an_end_that_is_lost_is_found(tmp_path):
    """Makes the model answer with the end of a turn, then removes that end from the export."""
    public = chat_folders.llava(tmp_path / "hf", "llama", "qwen base")
    before = lmmkit.load(public, device="cpu", template="chatml")
    prompt = next(iter(prompts_of(before, tmp_path)))
    end = before.prepared.tokenizer.control("<|im_end|>")
    chat_folders.end_with(public, prompt.ids, prompt.pixels, end, before)
    import_model(public, tmp_path / "ours", template="chatml")
    export_model(tmp_path / "ours", tmp_path / "out", "llava-hf")
    require_equal(tmp_path / "out", verify_export(tmp_path / "ours", tmp_path / "out", "llava-hf"))
    edit(tmp_path / "out" / "generation_config.json", eos_token_id=before.prepared.tokenizer.eos)
    assert "answer to an image" in wrong(verify_export(tmp_path / "ours", tmp_path / "out", "llava-hf"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_export_in_another_type_is_compared_in_it(dtype, good, tmp_path):
    export_model(good, tmp_path / "out", "llava-hf", dtype=dtype)
    require_equal(tmp_path / "out", verify_export(good, tmp_path / "out", "llava-hf", dtype=dtype))
    assert "tensors" in wrong(verify_export(good, tmp_path / "out", "llava-hf"))


@pytest.mark.parametrize(
    ("kind", "norm"), [("llava", "model.norm.weight"), ("lmmkit", "lmm.decoder.norm.weight")]
)
def test_other_formats_are_opened_by_lmmkit(kind, norm, good, tmp_path):
    export_model(good, tmp_path / "out", kind)
    found = verify_export(good, tmp_path / "out", kind)
    require_equal(tmp_path / "out", found)
    assert [each.what for each in found if each.equal is None] == ["opened by"]
    assert {e.what for e in found if e.equal} == {
        "tensors",
        "logits",
        "answer to an image",
        "answer to a text",
    }
    add_one(tmp_path / "out", norm)
    assert {"tensors", "logits"} <= wrong(verify_export(good, tmp_path / "out", kind))


def test_a_model_without_a_tokenizer(tmp_path):
    hf_model_folders.saved(hf_model_folders.llava("llama", "clip", "tied"), tmp_path / "hf")
    import_model(tmp_path / "hf", tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "out", "llava-hf")
    found = verify_export(tmp_path / "ours", tmp_path / "out", "llava-hf")
    assert [(each.what, each.equal) for each in found][:2] == [("tensors", True), ("logits", None)]


def test_the_command(good, tmp_path, monkeypatch):
    text = command("model", "export", good, tmp_path / "out", "--verify")
    rows = [line for line in text.splitlines() if line.startswith("  ")]
    assert len(rows) == 10 and all(len(row.rstrip()) <= 80 for row in rows)
    assert {row[2:24].rstrip(): row[24:33].strip() for row in rows} == dict.fromkeys(
        MADE | TEMPLATED, "equal"
    ) | {LONE: "-"}
    for found, words in (None, "no package"), ("4.57.1", "transformers 4.57.1"):

        def answer(name: str, found: str | None = found) -> str:
            if found is None:
                raise PackageNotFoundError(name)
            return found

        monkeypatch.setattr("lmmkit.verify_export.by_transformers.version", answer)
        text = command("model", "export", good, tmp_path / "new", "--verify", code=3)
        assert "export/no-transformers" in text and "lmmkit[verify]" in text and words in text
    assert not (tmp_path / "new").exists()
