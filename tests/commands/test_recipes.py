"""`lmmkit recipes copy` where the system refuses to write."""

from __future__ import annotations

import errno
from pathlib import Path

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
