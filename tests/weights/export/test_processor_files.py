"""Tokens and pixels of an export: transformers' processor of the folder against ours.

The models are runs as people make them: a decoder with its tokenizer and an encoder, of public
folders, trained for two steps on the scenes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import pytest
import torch
import transformers as hf

import lmmkit
from lmmkit.api.sample import Image, Sample, Turn
from lmmkit.data.chat_templates import lay_out_prompt
from lmmkit.data.fits.rows import FixedRows
from lmmkit.data.image_markers import with_images
from lmmkit.data.images import normalise, read_image
from lmmkit.import_export import export_model, import_model
from lmmkit.inference.chat_model import ChatModel
from lmmkit.recipe import read_text
from lmmkit.training.run import train
from lmmkit.weights.export import chat_template_export
from tests.conftest import PLAIN
from tests.data.test_images import SIZES, noisy_image
from tests.data.text_tokenizers.test_hf_tokenizer import LLAMA3, META, QWEN, SPLIT, byte_level, random_texts
from tests.support import chat_folders, hf_model_folders
from tests.support.fake_llama_tokenizer import write_llama_like
from tests.support.plain_twins import show

N = 2000  # random texts here; test_tokenizers has 10,000 on the folders as they came
SHAPE = hf_model_folders.kv(hf_model_folders.ODD["plain"]) | {"max_position_embeddings": 1024}


@dataclass(frozen=True)
class Exported:
    """A run's model, and the llava-hf folder it was written to."""

    ours: ChatModel
    folder: Path

    def ids(self, turns: tuple[Turn, ...], image: Path) -> list[int]:
        """Returns the prompt in token ids, as in `input_ids`."""
        chat = self.ours.prepared.recipe.model.chat
        sample = Sample(
            key="a", turns=turns, images=(Image(str(image)),), template=chat.template,
            image_fit=chat.image_fit,
        )  # fmt: skip
        rows = self.ours.tokens.image_rows
        layout = lay_out_prompt(sample, self.ours.prepared.tokenizer, rows_of=FixedRows(rows))
        return [i for span in layout for i in (span.ids or [self.ours.tokens.image_token] * span.n)]


def exported(folder: Path, scenes: Path, text: hf.PreTrainedConfig, vision: str, template: str, shape: str):
    """Exports a run on the decoder `text`, whose tokenizer is in `folder`, and on an encoder."""
    hf_model_folders.saved(hf_model_folders.made(hf.AutoModelForCausalLM.from_config(text)), folder)
    hf_model_folders.saved(
        hf_model_folders.made(hf.AutoModel.from_config(hf_model_folders.VISIONS[vision])), folder / "encoder"
    )
    changes = [
        f"model.vision={{from: {folder / 'encoder'}}}", f"model.text={{from: {folder}, context: 512}}",
        f"model.tokenizer={{from: {folder}}}", f"model.chat={{template: {template}, image_fit: {shape}}}",
        "stages.pretrain.length.steps=1", "stages.finetune.length.steps=1", "speed.tokens=8192",
        *(f"data.{name}.template={template}" for name in ("questions", "heldout")),
    ]  # fmt: skip
    recipe = read_text(PLAIN, name="words.yaml", overrides=changes, root=scenes)
    run = train(recipe, out=folder / "run").run.path
    export_model(run, folder / "out", "llava-hf")
    return Exported(lmmkit.load(run, device="cpu"), folder / "out")


@pytest.fixture(scope="module")
def qwen(scenes, tmp_path_factory):
    """Rows to spare for <image> and <pad>."""
    folder = byte_level(tmp_path_factory.mktemp("qwen"), SPLIT, QWEN, True, None, QWEN[2])
    config = hf.Qwen2Config(**SHAPE | {"vocab_size": 916})
    return exported(folder, scenes, config, "clip", "chatml", "pad")


@pytest.fixture(scope="module")
def llama3(scenes, tmp_path_factory):
    """No row to spare: the vocabulary grows."""
    folder = byte_level(tmp_path_factory.mktemp("llama3"), LLAMA3, META, False, META[0], META[4])
    processor = hf.SiglipImageProcessor(size={"height": 30, "width": 30}, resample=2)  # as SigLIP 2 has it
    processor.save_pretrained(folder / "encoder")
    config = hf.LlamaConfig(**SHAPE | {"vocab_size": 906})
    return exported(folder, scenes, config, "siglip", "llama3", "stretch")


@pytest.fixture(scope="module")
def llama(scenes, tmp_path_factory):
    """Exports a run with a sentencepiece model."""
    folder = tmp_path_factory.mktemp("llama")
    write_llama_like(folder)
    config = hf.LlamaConfig(**SHAPE | {"vocab_size": 32_000})
    return exported(folder, scenes, config, "clip gelu", "vicuna_v1", "crop")


@pytest.mark.parametrize("name", ["qwen", "llama3"])
def test_ids_of_an_exported_byte_level_tokenizer(name, request):
    model = request.getfixturevalue(name)
    ours = model.ours.prepared.tokenizer
    theirs = hf.AutoTokenizer.from_pretrained(model.folder)
    processor = hf.AutoProcessor.from_pretrained(model.folder)
    for text in random_texts(N):
        ids = ours.encode(text)
        assert ids == theirs(text, add_special_tokens=False).input_ids, text
        assert ids == processor.tokenizer(text, add_special_tokens=False).input_ids, text
    assert theirs.convert_tokens_to_ids("<image>") == model.ours.tokens.image_token == ours.size
    assert theirs.pad_token_id == ours.size + 1
    again = lmmkit.load(model.folder, device="cpu")
    assert again.tokens.image_token == ours.size
    assert again.prepared.tokenizer.encode("a dog <image>") == ours.encode("a dog <image>")


TURNS = (Turn("user", "Is a cat on the mat", images=1),)
CONTENT = [{"type": "image"}, {"type": "text", "text": TURNS[0].text}]


@pytest.mark.parametrize("name", ["qwen", "llama3", "llama"])
def test_a_prompt_in_its_template_and_the_greedy_answer(name, request, tmp_path):
    model = request.getfixturevalue(name)
    theirs, info = hf.LlavaForConditionalGeneration.from_pretrained(model.folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = hf.AutoProcessor.from_pretrained(model.folder, backend="pil")
    noise = noisy_image(50, 41)
    noise.save(tmp_path / "a.png")
    messages = [{"role": "user", "content": [CONTENT[0] | {"image": noise}, CONTENT[1]]}]
    ready = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert ready.input_ids[0].tolist() == model.ids(TURNS, tmp_path / "a.png")
    new = theirs.eval().generate(**ready, max_new_tokens=24, do_sample=False)[:, ready.input_ids.shape[1] :]
    got = model.ours.generate(ready.input_ids, ready.pixel_values, max_new_tokens=24)
    assert torch.equal(got, new) and len(set(new[0].tolist())) > 5
    answer = model.ours.reply(TURNS, str(tmp_path / "a.png"), max_new_tokens=24)
    words = [
        i for i in new[0].tolist() if i not in model.ours.tokens.eos
    ]  # an end may have a text, as 2 has here
    assert processor.decode(words, skip_special_tokens=True).strip() == answer


@pytest.mark.parametrize("name", ["qwen", "llama3", "llama"])
def test_a_conversation_in_its_template(name, request, tmp_path):
    """Several turns and images, a system turn; text may stand as it is."""
    model = request.getfixturevalue(name)
    tokenizer = hf.AutoTokenizer.from_pretrained(model.folder)
    turns = (Turn("user", "a b"), Turn("assistant", "5  5\n5"), Turn("user", "a  mat?"))
    chat, ours = model.ours.prepared.recipe.model.chat, model.ours.prepared.tokenizer
    sample = Sample(key="a", turns=turns, template=chat.template)
    layout = lay_out_prompt(
        sample, ours, rows_of=FixedRows(9), after_eos="hf437"
    )  # as transformers now has it
    want = [i for span in layout for i in span.ids]
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    options = {"add_generation_prompt": True, "tokenize": False}
    assert tokenizer(tokenizer.apply_chat_template(messages, **options)).input_ids == want
    words = tokenizer.apply_chat_template([{"role": "system", "content": "Short."}, *messages], **options)
    assert "Short." in words and "helpful" not in words and words.count("system") == (name != "llama")
    two = tokenizer.apply_chat_template(
        [{"role": "user", "content": [CONTENT[0], CONTENT[0], CONTENT[1]]}], tokenize=False
    )
    gap = " \n" if name == "llama" else "\n"  # the space piece LLaVA-1.5 finds behind an image
    assert f"<image>{gap}<image>{gap}{TURNS[0].text}" in two


MARKED = [
    "Before: <image> after:<image>\n what?", "a <image> b", "a <image><image> b", "a b <image> <image>", "<image> a <image>",
    "a b\n<image>", "<image>\n<image>a", "<image>", "<image><image>", "a mat",
]  # fmt: skip


@pytest.mark.parametrize("name", ["qwen", "llama3", "llama"])
@pytest.mark.parametrize("text", MARKED)
def test_images_keep_their_places_in_its_template(name, text, request):
    model = request.getfixturevalue(name)
    chat, ours = model.ours.prepared.recipe.model.chat, model.ours.prepared.tokenizer
    count = text.count("<image>")
    sample = Sample(
        key="a", turns=(with_images(text, count),), images=(Image("a.png"),) * count, template=chat.template
    )
    layout = lay_out_prompt(sample, ours, rows_of=FixedRows(1))
    want = [i for span in layout for i in (span.ids or [model.ours.tokens.image_token])]
    first, *others = text.split("<image>")
    content = [{"type": "text", "text": first}]
    for part in others:
        content += [{"type": "image"}, {"type": "text", "text": part}]
    messages = [{"role": "user", "content": [item for item in content if item.get("text") != ""]}]
    tokenizer = hf.AutoTokenizer.from_pretrained(model.folder)
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tokenizer(text).input_ids == want


@pytest.mark.parametrize(
    "template, own", [("vicuna_v1", "A chat between"), ("chatml", "You are"), ("llama3", "")]
)
def test_a_system_prompt_of_ones_own_replaces_that_of_the_template(template, own):
    def rendered(messages: list[dict[str, str]], system: str) -> str:
        text = chat_template_export.jinja(template, space="", image="<image>", system=system)
        return jinja2.Environment().from_string(text).render(messages=messages, eos_token="</s>")

    asked, given = {"role": "user", "content": "x"}, {"role": "system", "content": "In Dutch."}
    assert (
        rendered([asked], "In Dutch.")
        == rendered([given, asked], "")
        == rendered([given, asked], "In French.")
    )
    assert own in rendered([asked], "") and (not own or own not in rendered([asked], "In Dutch."))


@pytest.mark.parametrize("name", ["qwen", "llama3", "llama"])
def test_pixels_of_an_exported_processor(name, request, tmp_path):
    """pad, stretch and crop: within a grey level of ours, at every size."""
    model = request.getfixturevalue(name)
    processor = hf.AutoProcessor.from_pretrained(model.folder, backend="pil")
    spec, shape = model.ours.prepared.dims.image, model.ours.prepared.recipe.model.chat.image_fit
    most = 0.0
    for size in SIZES:
        noisy_image(*size).save(tmp_path / "a.png")
        got = normalise(read_image(tmp_path / "a.png", spec, shape), spec)
        want = torch.from_numpy(np.array(processor.image_processor(noisy_image(*size))["pixel_values"][0]))
        levels = (got - want).abs() * torch.tensor(spec.std)[:, None, None] * 255
        most = max(most, float(levels.max()))
    show(f"grey_levels_{shape}", most)
    assert most < 1.01
    again = lmmkit.load(model.folder, device="cpu").prepared
    assert (again.recipe.model.chat.image_fit, again.dims.image) == (shape, spec)
    assert spec.resample == ("bilinear" if name == "llama3" else "bicubic")


@pytest.mark.parametrize(("template", "tokenizer"), chat_folders.FITTING)
def test_a_sequence_begins_once_however_a_prompt_is_made(template, tokenizer, tmp_path):
    """Makes a prompt from the template at once, from its text in each way, and by hand. The tokenizer alone adds no
    first token to its template at once, as transformers decides that."""
    public = chat_folders.llava(tmp_path / "hf", "llama", tokenizer)
    import_model(public, tmp_path / "ours", template=template)
    export_model(tmp_path / "ours", tmp_path / "out", "llava-hf")
    model = Exported(lmmkit.load(tmp_path / "ours", device="cpu"), tmp_path / "out")
    ours = model.ours.prepared.tokenizer
    first = [] if template == "chatml" or ours.bos is None else [ours.bos]
    processor = hf.AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    bare = processor(text="Is it 5 cats?").input_ids[0]
    assert bare == [*first, *ours.encode("Is it 5 cats?")]
    again = lmmkit.load(tmp_path / "out", device="cpu").prepared.tokenizer
    assert (again.bos, again.encode("a <s>b")) == (ours.bos, ours.encode("a <s>b"))
    if template == "plain":
        assert processor.chat_template is None
        return
    noise = noisy_image(50, 41)
    noise.save(tmp_path / "a.png")
    messages = [{"role": "user", "content": [CONTENT[0] | {"image": noise}, CONTENT[1]]}]
    want = model.ids(TURNS, tmp_path / "a.png")
    assert want[: len(first)] == first and not set(first) & set(want[len(first) :])
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == processor.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    assert processor(text=text, images=noise).input_ids[0] == want
    once = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    assert list(once[0]) == want
    alone = [{"role": "user", "content": TURNS[0].text}]
    led = processor.tokenizer.apply_chat_template(alone, add_generation_prompt=True, return_dict=False)
    text = processor.tokenizer.apply_chat_template(alone, add_generation_prompt=True, tokenize=False)
    assert [*first, *led] == processor(text=text).input_ids[0] == processor.tokenizer(text).input_ids


def test_a_tokenizer_that_knows_image_and_pad_keeps_both(scenes, tmp_path):
    """Exports from a folder as transformers saves it: `<image>` in tokenizer.json, an old token to pad."""
    (tmp_path / "hf").mkdir()
    folder = byte_level(tmp_path / "hf", SPLIT, QWEN, True, None, QWEN[2])
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"], "pad_token": QWEN[0]})
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = hf.LlavaConfig(
        vision_config=hf_model_folders.VISIONS["clip"], text_config=hf.Qwen2Config(**SHAPE | {"vocab_size": len(tokenizer)}),
        image_token_index=image,
    )  # fmt: skip
    theirs = hf_model_folders.made(hf.LlavaForConditionalGeneration(config))
    theirs.generation_config.pad_token_id = tokenizer.pad_token_id
    hf_model_folders.saved(theirs, folder)
    tokenizer.save_pretrained(folder)
    import_model(folder, tmp_path / "ours")
    changes = [
        f"model.vision={{from: {folder}}}", f"model.connector={{kind: mlp2x_gelu, from: {folder}}}",
        f"model.text={{from: {folder}, context: 512}}", f"model.tokenizer={{from: {folder}}}", "speed.tokens=8192",
        "stages.pretrain.length.steps=1", "stages.finetune.length.steps=1",
    ]  # fmt: skip
    run = train(read_text(PLAIN, overrides=changes, root=scenes), out=tmp_path / "run").run.path
    pad = tokenizer.pad_token_id
    for source in (tmp_path / "ours", run):
        out = tmp_path / f"{source.name}-out"
        export_model(source, out, "llava-hf")
        again = hf.AutoTokenizer.from_pretrained(out)
        assert again.convert_tokens_to_ids(["<image>", "<video>"]) == [image, image + 1]
        assert again.pad_token_id == pad and hf.AutoConfig.from_pretrained(out).image_token_index == image
        tokens = lmmkit.load(source, device="cpu").tokens
        assert (tokens.image_token, tokens.pad) == (image, pad)
        rows = hf.LlavaForConditionalGeneration.from_pretrained(out).get_input_embeddings().num_embeddings
        assert rows == len(tokenizer)
