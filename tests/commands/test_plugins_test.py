"""`lmmkit plugins test` and `lmmkit check` refuse a faulty plugin by name, with exit code 2 and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmmkit.cli import app
from tests.conftest import DIRECT
from tests.support.mistakes import FOLDER, recipe_text

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"


def run(*words: object):
    return CliRunner().invoke(app, list(map(str, words)))


def test_a_file_without_a_problem():
    done = run("plugins", "test", PLUGINS / "lmmkit_guided_loss" / "__init__.py", "--trust-files")
    assert done.exit_code == 0 and "no problems: guided_loss." in done.output


def test_settings_of_a_file_are_given_on_the_command_line():
    file = PLUGINS / "lmmkit_guided_loss" / "__init__.py"
    done = run("plugins", "test", file, "--trust-files", "--set", "plugins.guided_loss.layers=[99]")
    assert done.exit_code == 2 and "plan/layers" in done.output


def test_a_file_runs_only_if_it_is_trusted():
    done = run("plugins", "test", FOLDER / "value" / "mean_not_sum.py")
    assert done.exit_code == 2 and "plugin/untrusted-file" in done.output


@pytest.mark.parametrize(
    ("name", "code"),
    [("value/mean_not_sum", "not-additive"), ("value/assertion", "raised"), ("views/hash", "not-pure")],
)
def test_a_file_with_a_mistake(name, code):
    done = run("plugins", "test", FOLDER / f"{name}.py", "--trust-files")
    assert done.exit_code == 2 and f"[plugin/{code}]" in done.output and "Traceback" not in done.output
    assert f"{Path(name).name}.py:" in done.output


def test_the_problems_of_all_components_are_shown_at_once(tmp_path):
    """Takes a module without values, a mean, views of `hash()`, and a term that reads these views."""
    (tmp_path / "three.py").write_text(THREE)
    done = run("plugins", "test", tmp_path / "three.py", "--trust-files")
    assert done.exit_code == 2 and "Traceback" not in done.output
    for name, code in (
        ("head.modules", "uninitialised"),
        ("mean.value", "not-additive"),
        ("hashed.views", "not-pure"),
    ):
        assert f"error {name}, three.py:" in done.output and f"[plugin/{code}]" in done.output
    assert "3 problems." in done.output and "reader" not in done.output


THREE = """
from dataclasses import dataclass, replace
import torch
from torch import nn
from lmmkit.api import ExtraView, HiddenAt, HiddenMean, Loss, Select, View, hookimpl

STATES = HiddenAt(Select(supervised=True))

class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

@dataclass(frozen=True, kw_only=True)
class Head(Loss):
    needs = (STATES,)
    def modules(self, dims):
        return Layer(dims.width)
    def value(self, ctx):
        return (ctx[STATES].float() * ctx.module.weight).sum()

@dataclass(frozen=True, kw_only=True)
class Mean(Loss):
    needs = (STATES,)
    def value(self, ctx):
        return ctx[STATES].float().square().mean()

@dataclass(frozen=True, kw_only=True)
class Hashed(ExtraView):
    def views(self, sample, rng):
        return [View(sample=replace(sample, system=("See.", "Look.")[hash(sample.key) % 2]))]

@dataclass(frozen=True, kw_only=True)
class Reader(Loss):
    needs = (HiddenMean(Select(view="hashed")),)
    def value(self, ctx):
        return ctx[self.needs[0]].float().square().sum()

@hookimpl
def lmmkit_components():
    return {"head": Head, "mean": Mean, "hashed": Hashed, "reader": Reader}
"""


OTHER = """

@dataclass(frozen=True, kw_only=True)
class Old(Mean):
    api = 1

@hookimpl
def lmmkit_components():
    return {"old": Old, "mean": Mean}
"""


@pytest.mark.parametrize("command", ["test", "explain"])
def test_one_component_of_a_file(command, tmp_path):
    """Its sibling, of another API version, is not asked for."""
    (tmp_path / "two.py").write_text(THREE + OTHER)
    (tmp_path / "none.py").write_text("")
    trusted = run("plugins", command, f"{tmp_path}/two.py:mean", "--trust-files")
    assert "mean" in trusted.output and "api-version" not in trusted.output and "head" not in trusted.output
    assert trusted.exit_code == (2 if command == "test" else 0)
    for what, code in (
        ("two.py", "api-version"),
        ("two.py:men", "no-component"),
        ("none.py", "no-component"),
    ):
        done = run("plugins", command, f"{tmp_path}/{what}", "--trust-files")
        assert done.exit_code == 2 and f"[plugin/{code}]" in done.output, done.output


def test_a_recipe_in_a_folder_that_is_named_like_a_file(scenes, tmp_path):
    (tmp_path / "x.py.d").mkdir()
    (tmp_path / "x.py.d" / "mine.yaml").write_text(DIRECT)
    done = run("plugins", "test", tmp_path / "x.py.d" / "mine.yaml", "--root", scenes)
    assert done.exit_code == 0 and "directed_token" in done.output


def test_a_recipe_is_tried_on_its_data(scenes, tmp_path):
    (tmp_path / "mine.yaml").write_text(DIRECT)
    done = run("plugins", "test", tmp_path / "mine.yaml", "--root", scenes)
    assert done.exit_code == 0
    assert "no problems: directed_token, image_order, text_order, guided_loss." in done.output


def test_check_tries_the_plugins(scenes, tmp_path):
    (tmp_path / "mine.yaml").write_text(recipe_text(FOLDER / "modules" / "no_reset.py"))
    done = run("check", tmp_path / "mine.yaml", "--root", scenes, "--trust-files")
    assert done.exit_code == 2 and "[plugin/uninitialised]" in done.output
    assert done.output.count("trying attention backends") <= 1
    assert "mistake.modules, no_reset.py:" in done.output
