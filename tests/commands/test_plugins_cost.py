"""`lmmkit plugins cost`: its table, its JSON, and bad input."""

from __future__ import annotations

import json

from tests.conftest import PLAIN
from tests.test_cli import recipe, run  # noqa: F401 (a fixture)


def test_the_figures_of_a_stage(recipe, scenes):  # noqa: F811
    words = ["plugins", "cost", recipe, "--root", scenes, "--stage", "finetune", "--rounds", "2"]
    found = json.loads(run(*words, "--json"))
    assert (found["stage"], found["rounds"]) == ("finetune", 2) and found["seconds"] > 0
    assert [each["name"] for each in found["plugins"]] == ["directed_token", "guided_loss", "image_order"]
    text = run(*words)
    assert "stage finetune with all plugins" in text and "guided_loss" in text


def test_a_stage_without_plugins_has_the_figures_of_its_step(scenes, tmp_path):
    (tmp_path / "plain.yaml").write_text(PLAIN)
    text = run("plugins", "cost", tmp_path / "plain.yaml", "--root", scenes, "--rounds", "1")
    assert "stage pretrain with all plugins" in text and "no plugin is active in stage pretrain." in text


def test_an_unknown_stage_is_reported(recipe, scenes):  # noqa: F811
    assert "plugins/unknown-stage" in run("plugins", "cost", recipe, "--stage", "pretrian", code=2)
