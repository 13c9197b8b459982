"""Conversations: images of several questions and sizes, stopped answers, what is refused, attention of one answer."""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image as Pil

from lmmkit.api.sample import AnyRes, Image, Turn
from lmmkit.data.fits.rows import TiledRows
from lmmkit.demo.demo_run import DEMO_MODEL
from lmmkit.demo.image import draw_image
from lmmkit.errors import MachineError, UserError
from lmmkit.inference.conversation import AnswerStopped, Conversation
from lmmkit.inference.generate import greedy
from lmmkit.inference.load import load
from lmmkit.recipe import read_text
from tests.conftest import PLAIN
from tests.support.random_chat_model import random_chat_model

QUESTION = "How many objects are there?"


@pytest.fixture(scope="module")
def model():
    return load(DEMO_MODEL, device="cpu")


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[str]:
    """Writes a drawn scene, and noise of other shapes."""
    folder = tmp_path_factory.mktemp("images")
    noise = [(300, 20), (9, 31)]
    for i, size in enumerate(noise):
        Pil.effect_noise(size, 60).convert("RGB").save(folder / f"{i}.png")
    return [str(draw_image(folder, 2).path), *(str(folder / f"{i}.png") for i in range(len(noise)))]


@pytest.fixture
def talk(model):
    return Conversation(model, max_new_tokens=8)


def test_answers_are_those_of_reply_with_images_of_any_size_at_each_question(talk, model, paths):
    parts: list[str] = []
    talk.add_images(paths[:2])
    first = talk.ask(QUESTION, parts.append)
    talk.add_images(paths[2:])
    second = talk.ask("And here?")
    turns = [Turn("user", QUESTION, images=2), Turn("assistant", first), Turn("user", "And here?", images=1)]
    assert first == "".join(parts) == model.reply(turns[:1], paths[:2], max_new_tokens=8)
    assert second == model.reply(turns, paths, max_new_tokens=8)
    assert talk.turns == (*turns, Turn("assistant", second)) and talk.images == tuple(paths)
    assert talk.waiting == ()
    talk.reset()
    assert (talk.turns, talk.images, talk.waiting) == ((), (), ())
    assert talk.ask(QUESTION) == model.reply(QUESTION, max_new_tokens=8)


def test_a_reset_begins_with_the_first_images_and_names_those_that_are_gone(model, paths, tmp_path):
    with pytest.raises(UserError, match="image/file"):
        Conversation(model, max_new_tokens=8, first=[tmp_path / "absent.png"])
    copy = tmp_path / "copy.png"
    shutil.copy(paths[0], copy)
    talk = Conversation(model, max_new_tokens=8, first=[copy, paths[1]])
    for _ in range(2):
        assert talk.waiting == (str(copy), paths[1])
        talk.remove_image(paths[1])
        talk.add_images(paths[2:])
        talk.ask(QUESTION)
        assert talk.images == (str(copy), paths[2])
        talk.reset()
        assert (talk.turns, talk.images) == ((), ())
    copy.unlink()
    with pytest.raises(UserError, match="image/file"):
        talk.reset()
    assert (talk.turns, talk.images, talk.waiting) == ((), (), ())


def test_bad_images_are_named_together_and_none_is_added(talk, paths, tmp_path):
    (tmp_path / "words.png").write_text("no image")
    bad = [tmp_path / "absent.png", tmp_path / "words.png", "nul\0.png", tmp_path]
    with pytest.raises(UserError) as error:
        talk.add_images([paths[0], *bad])
    codes = [problem.code for problem in error.value.problems]
    assert codes == ["image/file", "image/format", "image/damaged", "image/file"] and talk.waiting == ()
    talk.add_images(paths[:2])
    talk.remove_image(paths[0])
    talk.remove_image("another")
    assert talk.waiting == (paths[1],)


def test_images_that_leave_no_space_are_refused_when_they_are_added(talk, paths):
    before = talk.rows()
    talk.add_images(paths[:1])
    rows = talk.rows() - before
    room = talk.chat_model.views.context - talk.max_new_tokens
    assert rows >= 16
    with pytest.raises(UserError, match="chat/too-long"):
        talk.add_images(paths[:1] * (1 + room // 16))
    assert talk.waiting == (paths[0],)


def test_a_question_that_cannot_be_asked_is_forgotten_and_its_images_wait(talk, paths):
    talk.add_images(paths[:1])
    for text in ("<image> and <image>?", "x" * 3000, "half a pair \ud800"):
        with pytest.raises(UserError):
            talk.ask(text)
    assert talk.turns == () and talk.waiting == (paths[0],)
    assert talk.ask(QUESTION)


def test_without_enough_memory_the_question_is_forgotten_and_the_next_one_is_answered(model, paths):
    talk = Conversation(
        model, max_new_tokens=8, choose=lambda logits_QV: torch.empty(2**50, dtype=torch.uint8)
    )
    talk.add_images(paths[:1])
    with pytest.raises(MachineError, match=r"the answer: got .*machine/out-of-memory"):
        talk.ask(QUESTION)
    with pytest.raises(MachineError, match="machine/out-of-memory"):
        model.reply(QUESTION, paths[0], choose=talk.choose)
    assert talk.turns == () and talk.waiting == (paths[0],)
    talk.choose = greedy
    assert talk.ask(QUESTION) == model.reply(QUESTION, paths[0], max_new_tokens=8)


def test_a_stopped_answer_remains_as_far_as_it_is_written(model, paths):
    talk = Conversation(model, max_new_tokens=8, choose=_never_ends(model))
    talk.add_images(paths[:1])
    parts: list[str] = []

    def stop(part: str) -> None:
        parts.append(part)
        if len(parts) == 2:
            talk.stop()

    answer = talk.ask(QUESTION, stop)
    assert answer == "".join(parts) and len(parts) == 2
    assert [turn.text for turn in talk.turns] == [QUESTION, answer]
    assert talk.ask(QUESTION) == 8 * "wo", "the next answer is not stopped"


def test_a_question_whose_answer_is_stopped_at_once_is_forgotten(model, paths):
    def stopped(logits_QV):
        raise AnswerStopped

    talk = Conversation(model, max_new_tokens=8, choose=stopped)
    talk.add_images(paths[:1])
    assert talk.ask(QUESTION) == "" and talk.turns == () and talk.waiting == (paths[0],)


def _never_ends(model):
    word = model.views.tokenizer.encode_continued("two")[-1]
    return lambda logits_QV: torch.full((len(logits_QV),), word)


def test_what_stops_the_program_leaves_the_written_part(model, paths):
    talk = Conversation(model, max_new_tokens=8, choose=_never_ends(model))

    def interrupt(part: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.ask(QUESTION, interrupt)
    assert len(talk.turns) == 2 and talk.turns[1].text


def test_attention_is_that_of_one_answer_to_all_images_before_it(talk, paths):
    talk.add_images(paths[:1])
    talk.ask(QUESTION)
    talk.add_images(paths[1:])
    talk.ask("Is there a circle?")
    first, second = talk.attention(1), talk.attention(3)
    assert len(first.images) == 1 and len(second.images) == 3
    for found in (first, second):
        assert sum(each.mass for each in found.images) == pytest.approx(found.mass)
        assert sum(each.even for each in found.images) == pytest.approx(found.even)
        assert all(each.map_XY.shape == (4, 4) for each in found.images) and 0 < found.mass < 1
    alone = Conversation(talk.chat_model, max_new_tokens=8)
    alone.add_images(paths[:1])
    alone.ask(QUESTION)
    assert torch.equal(alone.attention(1).map_XY, first.map_XY)
    alone.reset()
    alone.ask(QUESTION)
    assert alone.attention(1) is None, "without images"


def test_images_that_are_cut_into_tiles_take_rows_by_their_size(scenes, tmp_path):
    fit = "{kind: anyres, max_tiles: 4}"
    model = random_chat_model(
        read_text(PLAIN, root=scenes, overrides=[f"model.chat.image_fit={fit}", "model.text.context=400"])
    )
    talk = Conversation(model, max_new_tokens=4, choose=_never_ends(model))
    large, small, narrow = (str(tmp_path / f"{i}.png") for i in range(3))
    for path, size in ((large, (70, 66)), (small, (20, 50)), (narrow, (1, 100))):
        Pil.effect_noise(size, 60).convert("RGB").save(path)
    rows = [TiledRows(AnyRes(max_tiles=4), model.prepared.dims.image)(Image(path)) for path in (large, small)]
    assert talk.rows([large]) - talk.rows([small]) == rows[0] - rows[1] > 0
    with pytest.raises(UserError, match="image/narrow"):
        talk.add_images([narrow])
    talk.add_images([large, small])
    assert talk.ask("red?")
    found = talk.attention(1)
    assert [each.map_XY.shape for each in found.images] == [(3, 3), (3, 3)], "of the overview"
    assert sum(each.mass for each in found.images) == pytest.approx(found.mass)
    assert all(float(each.map_XY.sum()) < each.mass for each in found.images), "the rest is on the tiles"


def test_images_that_keep_their_shape_take_rows_by_their_size(scenes, tmp_path):
    fit = "{kind: native, max_patches: 24}"
    model = random_chat_model(
        read_text(PLAIN, root=scenes, overrides=[f"model.chat.image_fit={fit}", "model.text.context=400"])
    )
    talk = Conversation(model, max_new_tokens=4, choose=_never_ends(model))
    wide, tall = (str(tmp_path / f"{i}.png") for i in range(2))
    for path, size in ((wide, (48, 16)), (tall, (8, 16))):  # patches of 8 pixels
        Pil.effect_noise(size, 60).convert("RGB").save(path)
    assert talk.rows([wide]) - talk.rows([tall]) == 12 - 2
    talk.add_images([wide, tall])
    assert talk.ask("red?")
    found = talk.attention(1)
    assert sum(each.mass for each in found.images) == pytest.approx(found.mass) and len(found.images) == 2
    assert [each.map_XY.shape for each in found.images] == [(2, 6), (2, 1)]
