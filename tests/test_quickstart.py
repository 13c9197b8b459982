"""The main job on a fresh machine, the fast way."""

from __future__ import annotations

import json
import subprocess
import sys

FIGURE = {"value", "low", "high", "chance", "n"}


def test_the_fast_quickstart_leaves_its_summary(tmp_path):
    command = [sys.executable, "-m", "lmmkit", "quickstart", "--fast"]  # where the README's would leave it
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "exact match, correct image" in result.stdout
    summary = json.loads((tmp_path / "quickstart" / "summary.json").read_text())
    assert summary.keys() == {"wall_seconds", "recipes"} and summary["recipes"].keys() == {"llava", "direct"}
    for recipe in summary["recipes"].values():
        assert recipe.keys() == {
            "accuracy", "accuracy_blank", "accuracy_swapped", "image_order", "text_order", "image_mass",
            "steps", "train_seconds",
        }  # fmt: skip
        for key in ("accuracy", "accuracy_blank", "accuracy_swapped"):
            assert recipe[key].keys() == FIGURE and recipe[key]["n"] == 180
    llava, direct = summary["recipes"]["llava"], summary["recipes"]["direct"]
    assert llava["image_order"] is llava["text_order"] is llava["image_mass"] is None
    for key in ("image_order", "text_order", "image_mass"):
        assert direct[key].keys() == FIGURE and 0 <= direct[key]["chance"] < 1
    assert llava["steps"] == direct["steps"]
    assert {p.name for p in (tmp_path / "quickstart").iterdir()} == {
        "scenes",
        "llava",
        "direct",
        "logs",
        "summary.json",
    }


def test_a_used_folder_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    command = [sys.executable, "-m", "lmmkit", "quickstart", "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "quickstart/not-empty" in result.stderr
