"""Resumes checkpoints of earlier releases and of this one: the next losses are those of that release."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lmmkit.recipe import read_recipe
from lmmkit.training.run import train
from tests.test_golden import kind

STORED = sorted(p for p in (Path(__file__).resolve().parents[2] / "stored").iterdir() if (p / "run").is_dir())


def test_this_release_has_one():
    from lmmkit.training.checkpoint.manifest import _version

    assert _version("lmmkit") in [path.name for path in STORED]


@pytest.mark.parametrize("stored", STORED, ids=lambda p: p.name)
def test_the_next_losses_are_those_of_that_release(stored, tmp_path):
    shutil.copytree(stored / "run", tmp_path / "run")
    recipe = read_recipe(stored / "recipe.yaml", root=stored / "data")
    lines = train(recipe, out=tmp_path / "run", resume=True).run.read_metrics()
    expected = json.loads((stored / "losses.json").read_text())
    losses = [line["loss"] for line in lines]
    assert losses == pytest.approx([float.fromhex(x) for x in expected["losses"]], rel=1e-5)
    if expected["on"] == kind():
        assert [loss.hex() for loss in losses] == expected["losses"]


@pytest.mark.parametrize("stored", STORED, ids=lambda p: p.name)
def test_a_stored_checkpoint_is_small_and_of_no_machine(stored):
    files = [path for path in stored.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 200_000
    for path in (p for p in files if p.suffix in (".json", ".yaml", ".txt")):
        assert (
            "/home" not in path.read_text()
            and "/work" not in path.read_text()
            and "/tmp" not in path.read_text()
        )
