"""Loading a model: which plugins it needs, and from where they are read."""

from __future__ import annotations

import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image as Pil

from lmmkit.api.model_info import ImageSpec
from lmmkit.api.sample import Turn
from lmmkit.data.image_files.image_file import save_pixels
from lmmkit.data.images import read_image
from lmmkit.data.packing import Packer
from lmmkit.errors import UserError
from lmmkit.evaluate.run import evaluate
from lmmkit.import_export import export_model
from lmmkit.inference import chat_model as chat_model_file
from lmmkit.inference.generate import generate
from lmmkit.inference.load import load
from lmmkit.model.vlm import ImageFeatures
from lmmkit.recipe import read_recipe
from lmmkit.training.run import train
from tests.conftest import PLAIN

PLUGINS = """
from dataclasses import dataclass
from torch import nn
from lmmkit.api import ImageReducer, AttnMass, HiddenAt, Insert, LearnedTokens, Loss, Select, TokenStrategy, hookimpl

@dataclass(frozen=True, kw_only=True)
class Look(Loss):
    needs = (AttnMass(q=Select(supervised=True)),)
    def value(self, ctx):
        return ctx[self.needs[0]].sum()

@dataclass(frozen=True, kw_only=True)
class Read(Loss):
    needs = (HiddenAt(Select(token_name="pause")),)
    def value(self, ctx):
        return ctx[self.needs[0]].float().pow(2).sum()

@dataclass(frozen=True, kw_only=True)
class Pause(TokenStrategy):
    provides = ("pause",)
    def edit(self, view):
        return [Insert("before_response", "pause")]
    def modules(self, dims):
        return LearnedTokens(1, dims.width)

@dataclass(frozen=True, kw_only=True)
class Registers(Pause):
    provides = ("register",)
    unread = True
    def edit(self, view):
        return [Insert("after_image", "register"), Insert("after_token", "register", token=" a")]

@dataclass(frozen=True, kw_only=True)
class Halve(ImageReducer):
    def tokens(self, dims):
        return dims.image.tokens // 2
    def modules(self, dims):
        return nn.Linear(dims.image.width, dims.image.width)
    def reduce(self, seen, connect, module):
        return connect(module(seen[:, ::2][:, : seen.shape[1] // 2]))

@dataclass(frozen=True, kw_only=True)
class Own(ImageReducer):
    connects = True
    def tokens(self, dims):
        return dims.image.tokens
    def modules(self, dims):
        return nn.Linear(dims.image.width, dims.width)
    def reduce(self, seen, connect, module):
        return module(connect(seen))

@hookimpl
def lmmkit_components():
    return {"halve": Halve, "own": Own, "look": Look, "read": Read, "pause": Pause, "registers": Registers}
"""
ASKED = [Turn("user", "How many objects are there?")]


@pytest.fixture
def trained(tiny, scenes, tmp_path):
    """trained(*names) -> a run with these plugins of a file `mine.py` below its root."""

    def make(*names: str):
        root = tmp_path / "root"
        shutil.copytree(scenes, root)
        (root / "mine.py").write_text(PLUGINS)
        uses = "".join(f"  {name}: {{use: ./mine.py}}\n" for name in names)
        losses = "".join(
            f", {name}: 0.1" for name in names if name not in ("pause", "registers", "halve", "own")
        )
        text = PLAIN.replace("stages:", f"plugins:\n{uses}stages:", 1).replace("{steps: 6}", "{steps: 1}")
        tokens = "    tokens: [registers]\n" if "registers" in names else ""
        text = text.replace(
            "    losses: {next_token: 1.0}\n", f"{tokens}    losses: {{next_token: 1.0{losses}}}\n"
        )
        if "halve" in names:
            text = text.replace("{kind: mlp2x_gelu}", "{kind: mlp2x_gelu, reduce: halve}")
        if "own" in names:
            text = text.replace("{kind: mlp2x_gelu}", "{kind: none, reduce: own}")
        (tmp_path / "mine.yaml").write_text(text)
        recipe = read_recipe(tmp_path / "mine.yaml", root=root)
        return recipe, train(recipe, out=tmp_path / "run", trust_files=True).run

    return make


def test_a_plugin_that_only_trained_is_not_needed_to_answer(trained, tmp_path, monkeypatch):
    recipe, run = trained("look")
    before = load(run.path).reply(ASKED, max_new_tokens=5)
    shutil.move(run.model("finetune"), tmp_path / "moved")
    (tmp_path / "root" / "mine.py").unlink()
    monkeypatch.chdir("/")
    assert load(tmp_path / "moved").reply(ASKED, max_new_tokens=5) == before


def test_a_question_is_a_text_and_an_image_is_a_path_or_in_memory(trained, scenes):
    model = load(trained("look")[1].path)
    path = sorted((scenes / "images" / "heldout").iterdir())[0]
    asked = "How many objects are there?"
    expected = model.reply([Turn("user", asked, images=1)], str(path), max_new_tokens=5)
    read = read_image(path, model.prepared.dims.image, "pad")
    opened = Pil.open(path)
    for image in (str(path), path, opened, [opened], [path], opened.copy()):
        assert model.reply(asked, image, max_new_tokens=5) == expected
    assert isinstance(model.reply(asked, max_new_tokens=5), str)
    two = model.reply([Turn("user", asked, images=2)], [path, path], max_new_tokens=5)
    assert model.reply(asked, [path, opened], max_new_tokens=5) == two
    assert torch.equal(read, read_image(path, model.prepared.dims.image, "pad"))


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "CMYK", "I;16", "F", "1", "YCbCr"])
def test_an_image_in_memory_of_any_mode_is_read_like_its_file(tmp_path, mode):
    spec = ImageSpec(size=24, grid=(1, 1), width=1)
    noise = Pil.effect_noise((31, 20), 80)
    if mode == "I;16":
        noise = Pil.fromarray(np.asarray(noise).astype(np.uint16) * 257)
    elif mode in ("RGBA", "LA"):
        noise = Pil.merge(mode, [noise.rotate(90 * i, expand=False) for i in range(len(mode))])
    else:
        noise = noise.convert(mode)
    save_pixels(noise, tmp_path / "ours.bmp")
    found = read_image(tmp_path / "ours.bmp", spec, "pad")
    assert found.float().std() > 1
    if mode in ("RGBA", "P", "L", "LA", "I;16", "1"):  # the modes that a PNG file has
        noise.save(tmp_path / "theirs.png")
        assert torch.equal(found, read_image(tmp_path / "theirs.png", spec, "pad"))


def test_an_image_in_memory_that_cannot_be_read_is_a_problem(tmp_path):
    Pil.effect_noise((64, 64), 80).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    with pytest.raises(UserError, match="image/"):
        save_pixels(Pil.open(tmp_path / "half.jpg"), tmp_path / "x.bmp")


def test_a_plugin_that_answering_needs_is_found_below_the_run_s_root(trained, tmp_path, monkeypatch):
    recipe, run = trained("read", "pause")
    monkeypatch.chdir("/")
    with pytest.raises(UserError, match="plugin/untrusted-file") as error:
        load(run.path)
    assert len(error.value.problems) == 1, "what reads the token in training is not asked for"
    chat_model = load(run.path, trust_files=True)
    assert [s.name for s, _ in chat_model.views.edits] == ["pause"] and set(chat_model.objective.plugins) == {
        "pause"
    }
    assert chat_model.reply(ASKED, max_new_tokens=5) == load(run.path, trust_files=True, plugins="all").reply(
        ASKED, max_new_tokens=5
    )


def test_evaluation_opens_every_plugin_from_the_run_s_root_or_the_one_given(trained, tmp_path, monkeypatch):
    recipe, run = trained("look")
    monkeypatch.chdir("/")
    assert "look" in evaluate(run, recipe, only=["terms"], trust_files=True)["terms"].figures
    with pytest.raises(UserError, match="plugin/untrusted-file"):
        evaluate(run, recipe, only=["terms"])
    (tmp_path / "root").rename(tmp_path / "elsewhere")
    there = read_recipe(run.resolved, root=tmp_path / "elsewhere")
    assert "look" in evaluate(run, there, only=["terms"], trust_files=True)["terms"].figures


def test_a_model_answers_with_another_kernel_than_it_was_trained_with(trained):
    run = trained("look")[1]
    recipe = run.model("finetune") / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("attention: auto", "attention: xformers"))
    assert load(run.path).objective.lmm.backend.name in ("sdpa", "xformers")


def test_registers_are_in_prompts_and_behind_the_tokens_that_the_model_writes(trained, scenes, monkeypatch):
    run = trained("registers")[1]
    chat_model = load(run.path, trust_files=True)
    assert set(chat_model.objective.plugins) == {"registers"}
    (a,) = chat_model.prepared.tokenizer.encode_continued(" a")
    layouts, fed = [], []
    monkeypatch.setattr(
        Packer, "pack", _keep(Packer.pack, lambda self, samples, images: layouts.append(samples))
    )
    monkeypatch.setattr(
        chat_model_file, "generate", _keep(generate, lambda *_, **asked: fed.append(asked["feeds"]))
    )
    path = str(sorted((scenes / "images" / "heldout").iterdir())[0])
    chat_model.reply("Is there a circle?", path, max_new_tokens=5)
    layout = layouts[0][0].members[0].layout
    before = [x.kind if x.kind == "image" else x.ids[-1] for x, y in pairwise(layout) if y.owner]
    assert "image" in before and a in before and set(before) == {"image", a}
    (feed,) = fed[0]
    assert list(feed) == [a] and torch.equal(feed[a], chat_model.objective.plugins["registers"]())
    with pytest.raises(UserError, match="chat/learned-tokens"):
        chat_model.generate(torch.tensor([[5, 6]]), max_new_tokens=2)


def _keep(function, keep):
    """Returns the function, which calls `keep` with the same arguments first."""

    def kept(*args, **asked):
        keep(*args, **asked)
        return function(*args, **asked)

    return kept


def test_a_model_with_fewer_rows_for_an_image_answers_as_it_was_trained(trained, scenes, tmp_path):
    recipe, run = trained("halve")
    with pytest.raises(UserError, match="plugin/untrusted-file"):
        load(run.path)
    chat_model = load(run.path, trust_files=True)
    assert chat_model.prepared.image_rows == 4 and "halve" in chat_model.objective.plugins
    path = str(sorted((scenes / "images" / "heldout").iterdir())[0])
    answer = chat_model.reply("Is there a circle?", path, max_new_tokens=5)
    objective = chat_model.objective
    seen = objective.lmm.encode_sized(torch.zeros(1, 3, 24, 24))
    with torch.no_grad():
        rows = objective.lmm.connector(objective.plugins["halve"](seen[:, ::2][:, :4]))
        assert torch.equal(objective.lmm.project(ImageFeatures(seen)).sized_IND, rows)
    export_model(run.path, tmp_path / "kept", "lmmkit")
    again = load(tmp_path / "kept", trust_files=True, root=recipe.root)
    assert again.reply("Is there a circle?", path, max_new_tokens=5) == answer
    for kind in ("llava-hf", "llava"):
        with pytest.raises(UserError) as error:
            export_model(run.path, tmp_path / kind, kind)
        assert ["the reducer `halve`" in problem.got for problem in error.value.problems] == [True]
    figures = evaluate(run, recipe, only=["answers"], trust_files=True)
    assert "answers" in figures


def test_a_plugin_may_be_the_connector(trained, scenes):
    recipe, run = trained("own")
    lines = run.read_metrics()
    assert all(line["next_token" if "next_token" in line else "terms/next_token"] > 0 for line in lines)
    chat_model = load(run.path, trust_files=True)
    lmm, module = chat_model.objective.lmm, chat_model.objective.plugins["own"]
    assert not list(lmm.connector.parameters()) and chat_model.prepared.image_rows == 9
    seen = lmm.encode_sized(torch.zeros(1, 3, 24, 24))
    with torch.no_grad():
        assert torch.equal(lmm.project(ImageFeatures(seen)).sized_IND, module(seen))
    path = str(sorted((scenes / "images" / "heldout").iterdir())[0])
    assert isinstance(chat_model.reply("Is there a circle?", path, max_new_tokens=3), str)
