"""What ends an answer: transformers stops the export where lmmkit stops, for every template and base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf

import lmmkit
from lmmkit.api.sample import Image, Sample
from lmmkit.data.chat_templates import lay_out_prompt, response_end
from lmmkit.data.fits.rows import FixedRows
from lmmkit.data.images import normalise, read_image
from lmmkit.errors import UserError
from lmmkit.import_export import export_model, import_model
from lmmkit.inference.chat_model import ChatModel
from lmmkit.recipe import read_text
from lmmkit.training.run import train
from tests.conftest import PLAIN
from tests.support import chat_folders, hf_model_folders

LONGEST = 16


def prompt(ours: ChatModel, turns, image: str) -> tuple[list[int], torch.Tensor | None]:
    """Returns the ids of a prompt in the model's template, one for each row of an image, and the pixels."""
    chat = ours.prepared.recipe.model.chat
    images = (Image(image),) * sum(turn.images for turn in turns)
    sample = Sample(key="a", turns=turns, images=images, template=chat.template, image_fit=chat.image_fit)
    layout = lay_out_prompt(sample, ours.prepared.tokenizer, rows_of=FixedRows(ours.tokens.image_rows))
    ids = [i for span in layout for i in (span.ids or [ours.tokens.image_token] * span.n)]
    spec = ours.prepared.dims.image
    read = [normalise(read_image(Path(image), spec, chat.image_fit), spec) for _ in images]
    pixels = torch.stack(read) if images else None
    return ids, pixels


def ends_of(ours: ChatModel, template: str, named: int) -> dict[str, int]:
    """Returns the id that each of the three sources of ends names."""
    tokenizer = ours.prepared.tokenizer
    return {"template": response_end(template, tokenizer), "tokenizer": tokenizer.eos, "folder": named}


@pytest.mark.parametrize(("template", "tokenizer"), chat_folders.FITTING)
def test_transformers_stops_where_lmmkit_stops(template, tokenizer, tmp_path):
    image, named = chat_folders.question_image(tmp_path), 300
    public = chat_folders.llava(tmp_path / "hf", "llama", tokenizer, eos=[named])
    ends = ends_of(lmmkit.load(public, device="cpu", template=template), template, named)
    assert len(set(ends.values())) == (2 if ends["template"] == ends["tokenizer"] else 3)
    for source, end in ends.items():
        folder = shutil.copytree(public, tmp_path / source)
        before = lmmkit.load(folder, device="cpu", template=template)
        ids, pixels = prompt(before, chat_folders.QUESTIONS[0], image)
        at = chat_folders.end_with(folder, ids, pixels, end, before)
        import_model(folder, tmp_path / f"{source}-ours", template=template)
        export_model(tmp_path / f"{source}-ours", tmp_path / f"{source}-out", "llava-hf")
        ours = lmmkit.load(tmp_path / f"{source}-ours", device="cpu")
        theirs = hf.LlavaForConditionalGeneration.from_pretrained(tmp_path / f"{source}-out").eval()
        id_1T = torch.tensor([ids])
        want = theirs.generate(
            input_ids=id_1T, pixel_values=pixels, attention_mask=torch.ones_like(id_1T), max_new_tokens=LONGEST,
            do_sample=False,
        )[:, len(ids) :]  # fmt: skip
        assert want.shape[1] == at + 1 and int(want[0, -1]) == end
        assert torch.equal(ours.generate(id_1T, pixels, max_new_tokens=LONGEST), want)
        answer = ours.prepared.tokenizer.decode(want[0, :-1].tolist()).strip()
        assert ours.reply(chat_folders.QUESTIONS[0], image, max_new_tokens=LONGEST) == answer


def generation(folder: Path) -> list[int]:
    named = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert json.loads((folder / "config.json").read_text())["text_config"]["eos_token_id"] == named
    return named


def test_the_list_of_a_folder_stays_a_list(tmp_path):
    public = chat_folders.llava(tmp_path / "hf", "llama", "pieces", eos=[2, 0])
    import_model(public, tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "out", "llava-hf")
    assert generation(tmp_path / "out") == [2, 0]
    assert lmmkit.load(tmp_path / "out", device="cpu").tokens.eos == (2, 0)


def test_a_run_keeps_the_list_of_its_tokenizers_folder(scenes, tmp_path):
    """Trains on a base: its end token, the list beside it, and the end of a turn all end an answer."""
    folder = chat_folders.write_tokenizer(tmp_path / "base", "qwen base")
    config = hf.Qwen2Config(**chat_folders.SHAPE | {"vocab_size": 916})
    model = hf_model_folders.made(hf.AutoModelForCausalLM.from_config(config))
    model.generation_config = hf.GenerationConfig(eos_token_id=[301, 302])
    hf_model_folders.saved(model, folder)
    encoder = hf_model_folders.made(hf.AutoModel.from_config(hf_model_folders.VISIONS["clip"]))
    hf_model_folders.saved(encoder, folder / "encoder")
    changes = [
        f"model.vision={{from: {folder / 'encoder'}}}", f"model.text={{from: {folder}, context: 512}}",
        f"model.tokenizer={{from: {folder}}}", "model.chat={template: chatml, image_fit: pad}",
        "stages.pretrain.length.steps=1", "stages.finetune.length.steps=1", "speed.tokens=8192",
        *(f"data.{name}.template=chatml" for name in ("questions", "heldout")),
    ]  # fmt: skip
    run = train(read_text(PLAIN, name="ends.yaml", overrides=changes, root=scenes), out=tmp_path / "run").run
    ours = lmmkit.load(run.path, device="cpu")
    control = ours.prepared.tokenizer.control
    want = (301, 302, control("<|endoftext|>"), control("<|im_end|>"))
    assert ours.tokens.eos == want
    export_model(run.path, tmp_path / "out", "llava-hf")
    assert generation(tmp_path / "out") == list(want)


@pytest.mark.parametrize("named", [None, 32_000, 32_001, 31_999, 32_005, 2])
def test_no_id_is_given_twice(named, tmp_path):
    """Adds tokens beside the sentencepiece model; the config may name one of them for images."""
    folder = chat_folders.llava(tmp_path / "hf", "llama", "pieces")
    (folder / "added_tokens.json").write_text('{"<pad>": 32000, "<tool>": 32001}')
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if not key.startswith("image_token_")}
    config |= {} if named is None else {"image_token_index": named}
    (folder / "config.json").write_text(json.dumps(config))
    import_model(folder, tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "out", "llava-hf")
    image = {32_005: 32_005, 32_001: 32_001}.get(named, 32_002)  # <pad>, text and </s> are no image
    word = "<tool>" if named == 32_001 else "<image>"
    ours = lmmkit.load(tmp_path / "ours", device="cpu")
    processor = hf.AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    vocabulary = processor.tokenizer.get_vocab()
    assert len(set(vocabulary.values())) == len(vocabulary) == processor.tokenizer.__len__()
    ids = {"<pad>": 32_000, "<tool>": 32_001, word: image}
    assert {w: vocabulary[w] for w in ids} == ids and processor.tokenizer.pad_token_id == 32_000
    assert (
        processor.image_token_id
        == ours.tokens.image_token
        == image
        == hf.AutoConfig.from_pretrained(tmp_path / "out").image_token_id
    )
    assert ours.tokens.pad == 32_000
    asked, path = chat_folders.QUESTIONS[0], chat_folders.question_image(tmp_path)
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "path": path}, {"type": "text", "text": asked[0].text}],
        }
    ]
    ready = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert ready.input_ids[0].tolist() == prompt(ours, asked, path)[0]
    theirs = hf.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    new = theirs.generate(**ready, max_new_tokens=6, do_sample=False)[:, ready.input_ids.shape[1] :]
    assert torch.equal(ours.generate(ready.input_ids, ready.pixel_values, max_new_tokens=6), new)
    again = lmmkit.load(tmp_path / "out", device="cpu")
    assert again.tokens.image_token == image and again.prepared.tokenizer.control("<tool>") == 32_001


def test_an_added_token_without_a_matrix_row_is_no_problem(tmp_path):
    """Public decoders often have a padding token above their embedding; a chat token there would be used."""
    folder = chat_folders.write_tokenizer(tmp_path / "hf", "pieces")
    config = hf.LlamaConfig(**chat_folders.SHAPE | {"vocab_size": 32_000})
    hf_model_folders.saved(hf_model_folders.made(hf.AutoModelForCausalLM.from_config(config)), folder)
    (folder / "added_tokens.json").write_text('{"<pad>": 32000}')
    assert lmmkit.load(folder, device="cpu").objective.lmm.decoder.shape.vocab == 32_000
    (folder / "added_tokens.json").write_text('{"<|im_start|>": 32000, "<|im_end|>": 32001}')
    with pytest.raises(UserError, match="model/vocab"):
        lmmkit.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("named", "added", "pad"),
    [
        (None, {}, 32_001),  # the next free id, after that of images
        (0, {}, 0), (2, {}, 2), (32_000, {}, 32_001), (32_500, {}, 32_500), (32_500, {"<pad>": 32_001}, 32_001),
        (None, {"<pad>": 32_001}, 32_001), (0, {"<pad>": 32_001}, 0),
    ],
)  # fmt: skip
def test_a_loaded_model_pads_with_the_id_that_its_export_has(named, added, pad, tmp_path):
    folder = chat_folders.llava(tmp_path / "hf", "llama", "pieces")
    if added:
        (folder / "added_tokens.json").write_text(json.dumps({"<image>": 32_000} | added))
    (folder / "generation_config.json").write_text(
        json.dumps({} if named is None else {"pad_token_id": named})
    )
    config = json.loads((folder / "config.json").read_text())
    config["text_config"].pop("pad_token_id", None)
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    import_model(folder, tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "out", "llava-hf")
    assert hf.GenerationConfig.from_pretrained(tmp_path / "out").pad_token_id == pad
    assert hf.AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id == pad
    for path in (folder, tmp_path / "ours", tmp_path / "out"):
        model = lmmkit.load(path, device="cpu")
        assert model.tokens.pad == pad, path.name
    ids = torch.tensor([[1, 5, 6], [1, 7, 8]])
    first = model.generate(ids, max_new_tokens=1)
    ended = model.generate(ids, max_new_tokens=4, eos_token_id=int(first[0]))
    assert ended[0, 1:].tolist() == [pad] * (ended.shape[1] - 1)


ROPES = {
    "linear": {"factor": 2.0},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 16, "beta_fast": 24.0, "attention_factor": 1.25},
    "dynamic": {"factor": 3.0},
}  # fmt: skip


@pytest.mark.parametrize("kind", ROPES)
def test_an_export_has_the_rotary_positions_of_the_import(kind, tmp_path):
    """Compares logits in transformers, also of sequences longer than the context, and after a shorter context."""
    public = chat_folders.llava(tmp_path / "hf", "llama", "pieces")
    config = json.loads((public / "config.json").read_text())
    rope = {"rope_type": kind, "rope_theta": 1e4, **ROPES[kind]}
    text = config["text_config"] | {"max_position_embeddings": 32, "rope_parameters": rope}
    (public / "config.json").write_text(json.dumps(config | {"text_config": text}))
    import_model(public, tmp_path / "ours", template="plain")
    ours = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert ours["model"]["text"]["context"] == 32
    ours["model"]["text"]["context"] = 24
    id_1T = torch.randint(3, 300, (1, 80), generator=torch.Generator().manual_seed(0))
    whole, plain = logits(public, id_1T), logits(public, id_1T, rope_parameters={"rope_type": "default"})
    assert (whole - plain).abs().max() > 1e-3 * whole.abs().max()
    for name in ("as imported", "shorter"):
        export_model(tmp_path / "ours", tmp_path / name, "llava-hf")
        assert torch.equal(logits(tmp_path / name, id_1T), whole)
        assert torch.equal(logits(tmp_path / name, id_1T[:, :20]), logits(public, id_1T[:, :20]))
        (tmp_path / "ours" / "config.json").write_text(json.dumps(ours))


@torch.no_grad()
def logits(folder: Path, id_1T: torch.Tensor, **text: object) -> torch.Tensor:
    """Returns transformers' logits, with changes to its decoder's config."""
    config = hf.AutoConfig.from_pretrained(folder)
    for key, value in text.items():
        setattr(config.text_config, key, {"rope_theta": 1e4} | value)
    model = hf.LlavaForConditionalGeneration.from_pretrained(folder, config=config)
    return model.eval()(input_ids=id_1T).logits[..., :300]
