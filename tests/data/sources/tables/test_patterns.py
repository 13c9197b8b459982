"""Patterns: files of folders below, names with marks in them, and one file under two names."""

import pytest

from lmmkit.data.sources.tables.patterns import (
    files_of,
    is_pattern,
    json_files,
    matching,
    require_distinct,
)
from lmmkit.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.tar", "x/b.tar", "x/y/c.tar", "set [v2]/d.tar", "set v/e.tar", "n.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


@pytest.mark.parametrize("absolute", [True, False])
def test_files_that_match(folder, absolute):
    begin = folder if absolute else folder.relative_to(folder)
    for pattern, names in (
        ("*.tar", ["a.tar"]), ("x/*.tar", ["x/b.tar"]), ("*/*.tar", ["set [v2]/d.tar", "set v/e.tar", "x/b.tar"]),
        ("x/**/*.tar", ["x/b.tar", "x/y/c.tar"]), ("**/[ac].tar", ["a.tar", "x/y/c.tar"]), ("none/*.tar", []),
        ("set [v2]/*.tar", ["set [v2]/d.tar"]), ("set [v]/*.tar", ["set v/e.tar"]), ("?.tar", ["a.tar"]),
    ):  # fmt: skip
        assert matching(begin / pattern) == [begin / name for name in names], pattern
    assert is_pattern("a?") and not is_pattern("a{0..3}.tar")


def test_a_name_is_a_pattern_only_behind_the_folders_that_exist(folder):
    (folder / "[f].tar").write_text("")
    for name, found in (
        ("*.tar", ["[f].tar", "a.tar"]), ("[f].tar", ["[f].tar"]), ("none.tar", ["none.tar"]), ("none*", []),
        ("set [v2]/none.tar", ["set [v2]/none.tar"]), ("set [v2]/n*", []),
    ):  # fmt: skip
        assert files_of(folder / name) == [folder / each for each in found], name


def test_one_file_under_two_names_is_refused(folder):
    (folder / "x" / "again").symlink_to(folder / "x" / "y")
    with pytest.raises(UserError) as error:
        matching(folder / "x" / "**" / "*.tar")
    (problem,) = error.value.problems
    assert problem.code == "records/file" and "c.tar" in problem.got and "again" in problem.got
    (folder / "loop").symlink_to(folder)
    with pytest.raises(UserError):
        matching(folder / "**" / "*.tar")
    assert matching(folder / "*.tar") == [folder / "a.tar"]
    require_distinct(folder, [folder / "a.tar", folder / "x" / "b.tar"])
    with pytest.raises(UserError, match="one file"):
        require_distinct(folder, [folder / "a.tar", folder / "loop" / "a.tar"])


def test_numbered_files_of_two_sets_are_refused(folder):
    for name in (
        "a-00000-of-00002.jsonl",
        "a-00001-of-00002.jsonl",
        "b-00000-of-00003.jsonl",
        "a-00000-of-00001.tar",
    ):
        (folder / name).write_text("")
    assert len(json_files(folder / "*.jsonl")) == 3, "sets of two names"
    assert len(json_files(folder / "a-*2.jsonl")) == 2
    (folder / "a-00000-of-00002.json").write_text("")
    (folder / "b-00000-of-00001.jsonl").write_text("")
    for pattern, word in (("a-*.json*", "00000"), ("b-*", "of 1 and of 3"), ("**/a-*", "of 1 and of 2")):
        with pytest.raises(UserError) as error:
            json_files(folder / pattern)
        (problem,) = error.value.problems
        assert problem.code == "records/file" and word in problem.got and problem.hint
