"""`lmmkit chat` on public folders: an image and a prompt, several turns, and the template of each folder."""

from __future__ import annotations

import json

import pytest
import tokenizers
import torch
import transformers as hf
from PIL import Image
from typer.testing import CliRunner

import lmmkit
from lmmkit.api.sample import Image as ImageFile
from lmmkit.api.sample import Sample, Turn, View
from lmmkit.cli import app
from lmmkit.errors import UserError
from lmmkit.import_export import import_model
from lmmkit.inference.generate import Sampled
from lmmkit.training.run import train
from tests.conftest import PLAIN
from tests.support import hf_model_folders
from tests.support.fake_llama_tokenizer import write_llama_like


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    theirs = hf_model_folders.llava("llama", "clip", "plain")
    theirs.config.text_config.max_position_embeddings = 400
    theirs.resize_token_embeddings(32_064)
    theirs.config.image_token_index = theirs.config.image_token_id = 32_000
    hf_model_folders.scramble(theirs, 3)
    write_llama_like(hf_model_folders.saved(theirs, folder / "hf"))
    Image.effect_noise((50, 41), 60).convert("RGB").save(folder / "noise.png")
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    config = hf.Qwen2Config(
        **hf_model_folders.kv(hf_model_folders.ODD["grouped"]) | {"vocab_size": 300},
        max_position_embeddings=256,
    )
    hf_model_folders.saved(hf_model_folders.made(hf.Qwen2ForCausalLM(config)), folder)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[])
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return folder


def test_one_prompt_on_an_image(llava):
    words = [
        "chat",
        str(llava / "hf"),
        "--image",
        str(llava / "noise.png"),
        "--prompt",
        "a cat",
        "--max-new-tokens",
        "5",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    again = lmmkit.load(llava / "hf", device="cpu")
    answer = again.reply([Turn("user", "a cat", images=1)], str(llava / "noise.png"), max_new_tokens=5)
    assert result.stdout.strip() == answer.strip()


def test_a_conversation_of_two_turns(llava):
    words = ["chat", str(llava / "hf"), "--image", str(llava / "noise.png"), "--max-new-tokens", "4"]
    result = CliRunner().invoke(app, words, input="a cat\na mat\n\n")
    assert result.exit_code == 0, result.output
    assert result.stdout.count(">") >= 3


def test_a_decoder_alone_answers_in_its_template(qwen, tmp_path):
    ours = lmmkit.load(qwen, device="cpu")
    assert ours.prepared.recipe.model.chat.template == "chatml"
    assert isinstance(ours.reply([Turn("user", "hi")], max_new_tokens=6), str)
    import_model(qwen, tmp_path / "ours")
    again = lmmkit.load(tmp_path / "ours", device="cpu")
    assert again.reply([Turn("user", "hi")], max_new_tokens=6) == ours.reply(
        [Turn("user", "hi")], max_new_tokens=6
    )
    id_BT = torch.randint(3, 250, (1, 9))
    assert torch.equal(again.logits(id_BT), ours.logits(id_BT))


def test_a_prompt_that_leaves_no_room_for_the_answer_is_refused(qwen):
    ours = lmmkit.load(qwen, device="cpu")
    with pytest.raises(UserError, match="chat/too-long") as error:
        ours.reply([Turn("user", "x" * 300)], max_new_tokens=6)
    (problem,) = error.value.problems
    assert problem.expected == "the prompt and 6 new tokens within the context, which has 256 rows"


def test_ids_that_leave_no_room_in_the_context_are_refused(qwen):
    ours, ids = lmmkit.load(qwen, device="cpu"), torch.randint(3, 250, (2, 250))
    mask = torch.ones_like(ids)
    mask[:, :10] = 0
    assert ours.generate(ids[:, :2], max_new_tokens=2, attention_mask=None).shape == (2, 2)
    with pytest.raises(UserError, match="chat/too-long") as error:
        ours.generate(ids, max_new_tokens=7)
    assert "250 rows" in error.value.problems[0].got
    ours.generate(ids, max_new_tokens=6), ours.generate(ids, max_new_tokens=16, attention_mask=mask)
    with pytest.raises(UserError, match="chat/too-long"):
        ours.generate(ids, max_new_tokens=17, attention_mask=mask)
    with pytest.raises(UserError, match="chat/too-long"):
        ours.logits(torch.randint(3, 250, (1, 257)))


def test_a_marker_in_a_prompt_is_its_image(llava):
    image, hf_folder = str(llava / "noise.png"), str(llava / "hf")
    ours = lmmkit.load(hf_folder, device="cpu")

    def asked(*prompt: str, images: int = 1) -> str:
        words = [
            "chat",
            hf_folder,
            *["--image", image] * images,
            "--prompt",
            *prompt,
            "--max-new-tokens",
            "5",
        ]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == (0 if "image-markers" not in result.output else 2), result.output
        return (result.stdout if result.exit_code == 0 else result.output).strip()

    plain = ours.reply([Turn("user", "a cat", images=1)], image, max_new_tokens=5)
    assert asked("<image>\na cat") == asked("a cat\n<image>") == asked("a cat") == plain
    assert ours.reply([Turn("user", "<image>\na cat")], image, max_new_tokens=5) == plain
    inside = ours.reply([Turn("user", "a  cat", 1, (2,))], image, max_new_tokens=5)
    assert asked("a <image> cat") == inside != plain
    for prompt, images in (("<image> x", 0), ("<image><image> x", 1), ("<image> x", 2)):
        assert "chat/image-markers" in asked(prompt, images=images).replace("\n", "")


def test_a_system_prompt_of_the_model_is_in_its_prompts(llava, tmp_path):
    import_model(llava / "hf", tmp_path / "ours")
    ours, image = lmmkit.load(tmp_path / "ours", device="cpu"), str(llava / "noise.png")
    file = tmp_path / "ours" / "config.json"
    config = json.loads(file.read_text())
    config["model"]["chat"]["system"] = "a mat on a mat"
    file.write_text(json.dumps(config))
    again, turns = lmmkit.load(tmp_path / "ours", device="cpu"), [Turn("user", "a cat", images=1)]
    own = Sample(
        key="x", turns=tuple(turns), images=(ImageFile(image),), system="a mat on a mat", image_fit="crop"
    )
    answer = again.reply(turns, image, max_new_tokens=8)
    assert answer == ours.answer([[View(sample=own)]], max_new_tokens=8)[0]
    assert answer != ours.reply(turns, image, max_new_tokens=8)


def test_the_streamed_parts_are_the_answer(qwen):
    """With a tokenizer of bytes and random weights: most of the answer is no valid text."""
    ours = lmmkit.load(qwen, device="cpu")
    for seed in range(3):
        parts = []
        choose = Sampled(1.0, 1.0, torch.Generator().manual_seed(seed))
        answer = ours.reply("日本", max_new_tokens=40, choose=choose, on_text=parts.append)
        assert "".join(parts) == answer and len(parts) > 1


def test_no_questions_have_no_answers(qwen):
    assert lmmkit.load(qwen, device="cpu").answer([], max_new_tokens=6) == []


def test_an_image_for_a_text_model_is_refused(qwen, llava):
    result = CliRunner().invoke(
        app, ["chat", str(qwen), "--image", str(llava / "noise.png"), "--prompt", "x"]
    )
    assert result.exit_code == 2 and "no-vision" in result.output + (result.stderr or "")


def test_text_without_a_tokenizer_is_refused(tmp_path):
    ours = lmmkit.load(
        hf_model_folders.saved(hf_model_folders.decoder("llama", "plain"), tmp_path / "m"), device="cpu"
    )
    with pytest.raises(UserError, match="tokenizer/file"):
        ours.reply([Turn("user", "hi")])


SURE = """
from dataclasses import dataclass
from lmmkit.api import AttnMass, LogProb, LogSumExp, Loss, Select, hookimpl

@dataclass(frozen=True, kw_only=True)
class Sure(Loss):
    needs = (LogProb(Select(turn=-1)), LogSumExp(Select()), AttnMass(q=Select(supervised=True)))
    def count(self, batch):
        found = batch.samples_with(*self.needs)
        assert found, "counted on a prompt, in which it reads nothing"
        return found
    def value(self, ctx):
        a, b, c = ctx.by_sample(*self.needs)
        return (b.float() - a.float() + c.float()).sum()

@hookimpl
def lmmkit_components():
    return {"sure": Sure}
"""


def test_a_model_whose_term_reads_the_answers_of_records_answers_questions(tiny, tmp_path):
    """Finds nothing to read in a prompt, for a term that reads log-probabilities of the main view."""
    (tmp_path / "sure.py").write_text(SURE)
    changes = [
        f"plugins.sure={{use: '{tmp_path}/sure.py:sure'}}", "stages.pretrain.length.steps=1", "stages.finetune.length.steps=1",
        "stages.finetune.losses.sure=0.1", "stages.finetune.validate={every: 1, data: heldout, samples: 4, tasks: [answers]}",
        "evaluate.tasks.answers.samples=4",
    ]  # fmt: skip
    path = train(tiny(*changes, text=PLAIN), out=tmp_path / "run", trust_files=True).run.path
    result = CliRunner().invoke(app, ["eval", str(path), "--trust-files"])
    assert result.exit_code == 0, (result.output, result.exception)
    image = next((tiny(text=PLAIN).path("images")).rglob("*.jpg"))
    question = ("How many objects are there?", image)
    alone, whole = (
        lmmkit.load(path, trust_files=True, plugins=kind).reply(*question) for kind in ("inference", "all")
    )
    assert alone == whole
