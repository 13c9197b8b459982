"""What `lmmkit plugins new` writes passes its own test and its dry run, and trains."""

from __future__ import annotations

import importlib
import runpy
import sys
import tomllib
from typing import get_args

import pytest
from typer.testing import CliRunner

from lmmkit.cli import app
from lmmkit.commands.support.plugin_templates import PluginKind
from lmmkit.recipe import read_recipe
from lmmkit.training.run import train


def run(*words: object):
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.mark.parametrize("kind", get_args(PluginKind))
def test_a_new_plugin_passes_its_test_and_trains(kind, scenes, tmp_path, monkeypatch):
    name = f"my_new_{kind}"
    done = run("plugins", "new", name, "--kind", kind, "--out", tmp_path)
    assert done.exit_code == 0 and f"{name}.py" in done.output
    assert run("plugins", "test", tmp_path / f"{name}.py", "--trust-files").exit_code == 0
    monkeypatch.syspath_prepend(tmp_path)
    tests = runpy.run_path(str(tmp_path / f"test_{name}.py"))
    passed = [call() for test, call in tests.items() if test.startswith("test_")]
    assert len(passed) == 2
    sys.modules.pop(name)
    (tmp_path / "scenes").symlink_to(scenes)
    recipe = tmp_path / f"{name}.yaml"
    checked = run("check", recipe, "--root", tmp_path, "--trust-files")
    assert checked.exit_code == 0, checked.output
    read = read_recipe(recipe, root=tmp_path, overrides=["stages.only.length.steps=2"])
    assert train(read, out=tmp_path / "run", trust_files=True).signal is None


@pytest.mark.parametrize("kind", get_args(PluginKind))
def test_a_new_package_offers_its_components(kind, tmp_path, monkeypatch):
    name = f"my_{kind}_package"
    assert run("plugins", "new", name, "--kind", kind, "--package", "--out", tmp_path).exit_code == 0
    project = tomllib.loads((tmp_path / name / "pyproject.toml").read_text())["project"]
    monkeypatch.syspath_prepend(tmp_path / name / "src")
    module = importlib.import_module(name)
    offered = dict.fromkeys(module.lmmkit_components(), name)
    assert project["entry-points"]["lmmkit.plugins"] == offered and name in offered
    tests = runpy.run_path(str(tmp_path / name / "tests" / f"test_{name}.py"))
    tests["test_a_dry_run_finds_no_problem"]()
    recipe = read_recipe(tmp_path / name / f"{name}.yaml", root=tmp_path)
    assert set(recipe.plugins) == set(offered)
    sys.modules.pop(name)


def test_no_file_is_written_over(tmp_path):
    (tmp_path / "mine.yaml").write_text("")
    done = run("plugins", "new", "mine", "--kind", "loss", "--out", tmp_path)
    assert done.exit_code == 2 and "plugins/existing-file" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize("name", ["My", "my-loss", "token", "class", "lmmkit", "1st", "train", "next_token"])
def test_a_name_that_cannot_be_imported_is_refused(name, tmp_path):
    done = run("plugins", "new", name, "--kind", "loss", "--out", tmp_path)
    assert done.exit_code == 2 and "plugins/name" in done.output
