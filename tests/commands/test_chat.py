"""lmmkit chat with the model that comes with lmmkit, and without any."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lmmkit.cli import app
from lmmkit.demo.demo_run import DEMO_MODEL
from lmmkit.demo.image import draw_image
from tests.test_cli import run as lmmkit


def test_the_demo_draws_an_image_and_answers(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    text = lmmkit("chat", "--demo", "--seed", 2, "--prompt", "How many objects are there?")
    drawn = draw_image(tmp_path, 2)
    path = re.search(r"image: (\S+), a drawn scene that the model was not trained on: (.*)", text)
    assert path and path[2] == drawn.content
    assert Path(path[1]).read_bytes() == drawn.path.read_bytes(), "the image remains, to be looked at"
    assert ("zero", "one", "two", "three")[drawn.content.count("(")] in text.splitlines()


def test_the_demo_takes_an_image_of_the_user(tmp_path):
    image = draw_image(tmp_path, 5)
    text = lmmkit("chat", "--demo", "--image", image.path, "--prompt", "How many objects are there?")
    assert "image:" not in text and text == lmmkit(
        "chat", DEMO_MODEL, "--image", image.path, "--prompt", "How many objects are there?"
    )


def test_an_image_that_cannot_be_written_is_a_fault_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    text = lmmkit("chat", "--demo", "--prompt", "How many objects are there?", code=3)
    assert "files/cannot-write" in text and "nowhere" in text


@pytest.mark.parametrize(
    ("words", "got"), [((), "no model"), (("runs/mine", "--demo"), "`runs/mine` and `--demo`")]
)
def test_chat_needs_one_model(words, got):
    text = lmmkit("chat", *words, code=2)
    assert "chat/model" in text and got in text


def test_top_p_needs_a_temperature():
    text = lmmkit("chat", "--demo", "--prompt", "x", "--top-p", 0.9, code=2)
    assert "chat/top-p" in text and "`--top-p 0.9` without `--temperature`" in text


def test_a_conversation_takes_images_forgets_and_goes_on_after_mistakes(tmp_path):
    scenes = [draw_image(tmp_path, n) for n in (2, 5)]
    (tmp_path / "words.png").write_text("no image")
    count = "How many objects are there?"
    lines = [
        f"/image '{scenes[0].path}'", count, "/image /nowhere.png", f"/image {tmp_path / 'words.png'}", "<image>?", "/nothing",
        "/help", "/reset", f"/image {scenes[1].path}", count, "",
    ]  # fmt: skip
    result = CliRunner().invoke(app, ["chat", str(DEMO_MODEL)], input="\n".join(lines))
    assert result.exit_code == 0, result.output
    answers = [line for line in result.stdout.replace("> ", "\n").splitlines() if line.strip()]
    words = ("zero", "one", "two", "three")
    assert answers == [words[each.content.count("(")] for each in scenes]
    for code in ("image/file", "image/format", "chat/image-markers"):
        assert code in result.stderr
    assert "/nowhere.png" in result.stderr and "`/nothing` is not one of these:" in result.stderr
    assert "begun again, without turns; no image for the next question." in result.stderr
    assert "1 image for the next question; the conversation takes " in result.stderr
    assert result.stderr.count("/reset  begins again") == 2


def test_a_reset_in_the_terminal_is_as_at_the_start(tmp_path):
    scenes, count = [draw_image(tmp_path, n) for n in (2, 5)], "How many objects are there?"
    lines = [f"/image {scenes[1].path}", "/reset", count, "/reset", count, ""]
    result = CliRunner().invoke(
        app, ["chat", str(DEMO_MODEL), "--image", str(scenes[0].path)], input="\n".join(lines)
    )
    assert result.exit_code == 0, result.output
    answers = [line for line in result.stdout.replace("> ", "\n").splitlines() if line.strip()]
    assert answers == 2 * [("zero", "one", "two", "three")[scenes[0].content.count("(")]]
    assert result.stderr.count("begun again, without turns; 1 image for the next question.") == 2


def test_images_that_are_not_there_are_all_named_before_a_model_is_loaded(tmp_path):
    text = lmmkit("chat", tmp_path / "no-model", "--image", "a.png", "--image", "b.png", code=2)
    assert "a.png" in text and "b.png" in text and "2 problems" in text


def test_without_enough_memory_a_conversation_goes_on_and_one_question_exits_3(tmp_path, monkeypatch):
    from lmmkit.inference import generate

    scene, count, full = draw_image(tmp_path, 2), "How many objects are there?", [True, True]

    def greedy(logits_QV):
        return torch.empty(2**50, dtype=torch.uint8) if full and full.pop() else logits_QV.argmax(-1)

    monkeypatch.setattr(generate, "greedy", greedy)
    text = lmmkit("chat", "--demo", "--image", scene.path, "--prompt", count, code=3)
    assert "machine/out-of-memory" in text and "Traceback" not in text
    monkeypatch.setattr("lmmkit.commands.chat.paths_in", lambda text: bytearray(2**50))
    lines = [count, count, "/image large.png", ""]
    result = CliRunner().invoke(app, ["chat", "--demo", "--image", str(scene.path)], input="\n".join(lines))
    assert result.exit_code == 0 and result.stderr.count("machine/out-of-memory") == 2
    answers = [line for line in result.stdout.replace("> ", "\n").splitlines() if line.strip()]
    assert answers == [("zero", "one", "two", "three")[scene.content.count("(")]]
