"""The wheel carries all that a run needs: plugins, their entry points, the recipes."""

from __future__ import annotations

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_every_recipe_travels(wheel):
    names = {
        name.removeprefix("lmmkit/shipped/")
        for name in wheel.namelist()
        if name.startswith("lmmkit/shipped/")
    }
    assert names == {str(p.relative_to(ROOT / "recipes")) for p in (ROOT / "recipes").rglob("*.yaml")}
    assert "quickstart.yaml" in names


def test_every_module_and_plugin_travels(wheel):
    names = set(wheel.namelist())
    for folder in (ROOT / "lmmkit", *(ROOT / "plugins").iterdir()):
        base = folder.parent
        for path in folder.rglob("*.py"):
            assert str(path.relative_to(base)) in names


def test_the_templates_of_the_report_travel(wheel):
    folder = ROOT / "lmmkit" / "report" / "templates"
    names = {path.relative_to(ROOT).as_posix() for path in folder.iterdir()}
    assert names <= set(wheel.namelist()) and "lmmkit/report/templates/layout.html.j2" in names


def test_the_page_of_the_chat_travels(wheel):
    path = ROOT / "lmmkit" / "chat_page" / "page.html"
    assert wheel.read("lmmkit/chat_page/page.html") == path.read_bytes()


def test_the_demo_model_travels(wheel):
    for path in (ROOT / "lmmkit" / "demo" / "model").iterdir():
        assert wheel.read(f"lmmkit/demo/model/{path.name}") == path.read_bytes()
    assert "lmmkit/demo/model/model.safetensors" in wheel.namelist()


def test_entry_points_are_named_after_components(wheel):
    text = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    points = configparser.ConfigParser()
    points.read_string(wheel.read(text).decode())
    paper = {"directed_token", "image_order", "text_order", "guided_loss"}
    zoo = {name for name, module in points["lmmkit.plugins"].items() if module.startswith("lmmkit_zoo.")}
    assert paper | zoo | {"trackio"} == set(points["lmmkit.plugins"]) and {"viral", "rotation"} <= zoo


def test_nothing_names_this_workplace(wheel):
    for name in wheel.namelist():
        text = wheel.read(name).decode(errors="ignore")
        assert "/work/" not in text and "shared/" not in text, name
