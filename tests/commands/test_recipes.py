"""`lmmkit recipes`: names and first sentences of recipes and grids; copies, also where the system refuses to write."""

from __future__ import annotations

import errno
import json
import shlex
from pathlib import Path

from lmmkit.recipe.shipped import shipped, shipped_grids
from tests.test_cli import run


def test_a_copy_into_no_folder_is_a_problem(tmp_path):
    (tmp_path / "file").write_text("x")
    text = run("recipes", "copy", "quickstart", tmp_path / "file" / "mine.yaml", code=3)
    assert "files/cannot-write" in text and "mine.yaml" in text


def test_a_full_disk_leaves_no_part_of_the_copy(tmp_path, monkeypatch):
    def full(self, data):
        self.write_text("part")
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    text = run("recipes", "copy", "quickstart", tmp_path / "mine.yaml", code=3)
    assert "No space left" in text and not list(tmp_path.iterdir())


def test_brackets_in_names_are_printed_as_they_are(tmp_path):
    target = tmp_path / "x [draft] y[" / "q].yaml"
    target.parent.mkdir()
    assert str(target) in run("recipes", "copy", "quickstart", target)
    assert "'q[/q]'" not in run("recipes", "list")
    assert "`q[/q]`" in run("recipes", "copy", "q[/q]", code=2)


def test_the_command_that_follows_a_copy_runs_as_it_is(tmp_path):
    for name, word in (("quickstart", "train"), ("weights", "ablate")):
        target = tmp_path / f"my {name}'s.yaml"
        text = run("recipes", "copy", name, target)
        assert shlex.split(text.split("`")[1]) == ["lmmkit", word, str(target)]


def test_grids_are_listed_with_the_recipes_each_with_a_full_sentence():
    found = json.loads(run("recipes", "list", "--json"))
    assert set(found) == set(shipped()) | set(shipped_grids()) and "ablations/small/weights" in found
    assert [name for name, line in found.items() if not line.endswith(".")] == []
    assert found["miniature/decoder"].endswith("as the decoder that LLaVA starts from can.")


def test_a_grid_is_copied_by_its_name_with_or_without_the_folder(tmp_path):
    for name in ("ablations/weights", "weights", "small/weights"):
        target = tmp_path / "mine.yaml"
        assert "lmmkit ablate" in run("recipes", "copy", name, target)
        assert (
            target.read_bytes()
            == shipped_grids()[f"ablations/{name.removeprefix('ablations/')}"].read_bytes()
        )
        target.unlink()
    assert "Did you mean `ablations/weights`" in run("recipes", "copy", "ablations/weihgts", target, code=2)


def test_a_name_that_is_almost_right_is_suggested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "Did you mean `zoo/focal`" in run("check", "zoo/focl", code=2)
    assert "Did you mean `shuffling`" in run("ablate", "shufling", "--dry-run", code=2)
    text = run("check", "nothing-like-it.yaml", code=2)
    assert "Did you mean" not in text and "lmmkit recipes list" in text
