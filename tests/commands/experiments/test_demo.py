"""lmmkit demo: scenes, the figures of the shipped model on them, and the page, all of this call."""

from __future__ import annotations

import json
import re

import pytest

from lmmkit.commands.experiments import demo
from tests.test_cli import run as lmmkit


@pytest.fixture
def few(monkeypatch):
    """Makes the demo draw fewer scenes."""
    monkeypatch.setattr(demo, "SCENES", (100, 24))


def test_the_demo_evaluates_the_model_and_writes_the_page(few, tmp_path):
    text = lmmkit("demo", tmp_path / "d")
    results = json.loads((tmp_path / "d" / "direct" / "results.json").read_text())
    answers = results["answers"]
    assert answers["accuracy"]["n"] == 72 and answers["accuracy"]["value"] > 0.7
    assert (
        answers["accuracy_blank"]["value"] < 0.5 and results["terms"]["image_order/accuracy"]["value"] > 0.9
    )
    page = (tmp_path / "d" / "report.html").read_text()
    assert f"<h1>direct answers {100 * answers['accuracy']['value']:.1f} % of 72 questions right" in page
    assert "no logged steps" in page and "stopped" not in page
    commands = re.search(r'id="commands">(.*?)</pre>', page, re.S)
    assert commands and commands[1].splitlines()[0] == f"lmmkit demo {tmp_path / 'd'}"
    assert "comes with lmmkit" in page and "lmmkit chat --demo" in text and "all" in text


def test_a_folder_with_files_or_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path, got in ((tmp_path, "a folder with files in it"), (tmp_path / "file", "a file")):
        text = lmmkit("demo", path, code=2)
        assert "demo/not-empty" in text and got in text
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (
        tmp_path / "file"
    ).read_text() == "mine"


def test_a_folder_below_a_file_is_a_fault_of_the_machine(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "files/cannot-write" in lmmkit("demo", tmp_path / "file" / "d", code=3)
