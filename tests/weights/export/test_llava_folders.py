"""What ends an answer: transformers stops the export where lmmkit stops, for every template and base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf

import lmmkit
from lmmkit.api.sample import Image, Sample
from lmmkit.data.chat_templates import lay_out_prompt, response_end
from lmmkit.data.images import FixedRows, normalise, read_image
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
        folder = chat_folders.llava(tmp_path / source, "llama", tokenizer, eos=[named])
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
