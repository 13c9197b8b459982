"""lmmkit chat with the model that comes with lmmkit, and without any."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
