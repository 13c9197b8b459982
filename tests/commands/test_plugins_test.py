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


def test_a_recipe_is_tried_on_its_data(scenes, tmp_path):
    (tmp_path / "mine.yaml").write_text(DIRECT)
    done = run("plugins", "test", tmp_path / "mine.yaml", "--root", scenes)
    assert done.exit_code == 0
    assert "no problems: directed_token, image_order, text_order, guided_loss." in done.output


def test_check_tries_the_plugins(scenes, tmp_path):
    (tmp_path / "mine.yaml").write_text(recipe_text(FOLDER / "modules" / "no_reset.py"))
    done = run("check", tmp_path / "mine.yaml", "--root", scenes, "--trust-files")
    assert done.exit_code == 2 and "[plugin/uninitialised]" in done.output
    assert "mistake.modules, no_reset.py:" in done.output
