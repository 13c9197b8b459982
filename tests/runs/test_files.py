"""Folders and files that are written completely or not at all."""

import math
import os
import zlib
from pathlib import Path

import pytest

from lmmkit.errors import UserError
from lmmkit.runs import files
from lmmkit.runs.files import clean_aside, file_crc32, finite, write_aside, write_text_atomic
from tests.support.disk_waits import record_waits


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def written(folder, text="new", **options):
    with write_aside(folder, **options) as aside:
        (aside / "a").write_text(text)


def test_a_folder_appears_when_it_is_complete(tmp_path):
    folder = tmp_path / "deep" / "model"
    with write_aside(folder) as aside:
        (aside / "a").write_text("x")
        assert aside.parent == folder.parent and not folder.exists()
    assert names(folder.parent) == ["model"] and names(folder) == ["a"]


def test_an_empty_folder_is_filled_and_another_one_is_kept(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    written(folder)
    with pytest.raises(OSError):
        written(folder, "other")
    assert names(tmp_path) == ["model"] and (folder / "a").read_text() == "new"


@pytest.mark.parametrize("place", [".", "/"])
def test_a_folder_without_a_name_is_refused_by_the_system(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="cannot be renamed"), write_aside(Path(place)):
        raise AssertionError("nothing is written")
    assert names(tmp_path) == []


def test_replace_keeps_the_old_folder_until_the_new_one_is_complete(tmp_path):
    folder = tmp_path / "model"
    written(folder, "old")
    with write_aside(folder, replace=True) as aside:
        (aside / "b").write_text("x")
        assert names(folder) == ["a"]
    assert names(tmp_path) == ["model"] and names(folder) == ["b"]


def test_replace_removes_a_link_and_not_its_target(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x").touch()
    (tmp_path / "model").symlink_to(tmp_path / "elsewhere")
    written(tmp_path / "model", replace=True)
    assert not (tmp_path / "model").is_symlink() and names(tmp_path / "elsewhere") == ["x"]


def test_what_is_written_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events = record_waits(monkeypatch, files)
    write_text_atomic(tmp_path / "a", "x")
    temporary = tmp_path / f".a.{os.getpid()}.tmp"
    assert events == ["write a", temporary, "publish a", "sync the name of a", tmp_path]
    events.clear()
    with write_aside(tmp_path / "model") as aside:
        (aside / "b").touch()
        (aside / "c").touch()
    assert events == [aside / "b", aside / "c", aside, "publish the folder", tmp_path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("failing", ["the block", "set the old folder aside", "publish the folder"])
def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path, monkeypatch, failing, error):
    folder = tmp_path / "model"
    written(folder, "old")

    def point(name):
        if name == failing:
            raise error

    monkeypatch.setattr(files, "io_point", point)
    with pytest.raises(error), write_aside(folder, replace=True):
        point("the block")
    assert names(tmp_path) == ["model"] and (folder / "a").read_text() == "old"


@pytest.mark.parametrize("dies_at", ["set the old folder aside", "publish the folder"])
def test_after_a_death_the_old_folder_is_restored(tmp_path, monkeypatch, dies_at):
    folder = tmp_path / "model"
    written(folder, "old")
    others = [tmp_path / name for name in (".model.v2.1.tmp", ".other.1.tmp", ".model.mine.tmp")]
    for other in others:
        other.mkdir()
    if (pid := os.fork()) == 0:
        monkeypatch.setattr(files, "io_point", lambda name: name == dies_at and os._exit(7))
        written(folder, replace=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert (tmp_path / f".model.{pid}.tmp").is_dir()
    clean_aside(folder)
    assert (folder / "a").read_text() == "old"
    assert names(tmp_path) == sorted(["model", *(other.name for other in others)])


def test_the_crc_of_a_file_is_that_of_its_bytes(tmp_path):
    data = bytes(range(256)) * 20_000  # more than one block
    (tmp_path / "a").write_bytes(data)
    assert file_crc32(tmp_path / "a") == zlib.crc32(data)
    (tmp_path / "a").write_bytes(b"")
    assert file_crc32(tmp_path / "a") == 0


@pytest.mark.parametrize("value", [True, "3", None, math.nan, math.inf, [1], 10**400])
def test_only_finite_numbers_are_numbers(value):
    assert finite(value) is None


def test_lines_that_cannot_be_read_are_a_problem_and_no_file_is_no_line(tmp_path):
    assert files.read_jsonl(tmp_path / "none.jsonl") == []
    with pytest.raises(UserError, match=r"got Is a directory.*run/damaged"):
        files.read_jsonl(tmp_path)
