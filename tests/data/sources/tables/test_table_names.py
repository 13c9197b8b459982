"""Folders and patterns of tables as people have them: complete, in part, twice, beside what `datasets` keeps."""

import json

import pytest

from lmmkit.data.sources.tables.table_names import table_files
from lmmkit.errors import UserError


def made(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def names(path):
    return [each.name for each in table_files(path)]


def problem(path):
    with pytest.raises(UserError) as error:
        table_files(path)
    (found,) = error.value.problems
    assert found.code == "records/file"
    return found


def numbered(total, kind="parquet", begin="train", more=""):
    return [f"{begin}-{n:05d}-of-{total:05d}{more}.{kind}" for n in range(total)]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("more", ["", "-0a1b2c3d4e5f6789"])
def test_a_folder_without_one_of_its_numbered_files_is_refused(tmp_path, kind, more):
    files = numbered(4, kind, more=more)
    made(tmp_path, *files)
    assert names(tmp_path) == names(tmp_path / f"*.{kind}") == files
    for n, file in enumerate(files):
        (tmp_path / file).unlink()
        found = problem(tmp_path)
        assert (
            f"3 of 4 numbered files; the first that is not there is train-{n:05d}-of-00004*.{kind}"
            in found.got
        )
        assert f"{tmp_path}/*.{kind}" in found.expected
        assert names(tmp_path / f"*.{kind}") == [each for each in files if each != file]  # a pattern chooses
        made(tmp_path, file)


def test_numbers_may_begin_at_one(tmp_path):
    made(tmp_path, *numbered(4)[1:], "train-00004-of-00004.parquet")
    assert len(names(tmp_path)) == 4
    (tmp_path / "train-00002-of-00004.parquet").unlink()
    assert "train-00002-of-00004" in problem(tmp_path).got


def test_files_that_repeat_records_are_refused(tmp_path):
    made(tmp_path / "a", *numbered(2), *numbered(3))
    made(tmp_path / "b", *numbered(2, more="-0a"), *numbered(2, more="-1b"))
    made(tmp_path / "c", *numbered(2, "arrow", "data"), "cache-1f2e3d.arrow")
    made(tmp_path / "d", "cache-1f.arrow", "cache-2e.arrow")
    for folder, got in (
        ("a", "of 2 and of 3 `train`"),
        ("b", "number 00000"),
        ("c", "cache-1f2e3d"),
        ("d", "cache-1f"),
    ):
        assert got in problem(tmp_path / folder).got
        assert got in problem(tmp_path / folder / "*").got
    assert names(tmp_path / "a" / "*-of-00003.parquet") == numbered(3)
    assert names(tmp_path / "c" / "data-*.arrow") == numbered(2, "arrow", "data")
    assert names(tmp_path / "d" / "cache-1*") == ["cache-1f.arrow"]
    made(tmp_path / "e", "cache-1f_00000_of_00002.arrow", "cache-1f_00001_of_00002.arrow")
    assert len(names(tmp_path / "e")) == 2
    made(tmp_path / "f", *numbered(2), *numbered(3, begin="test"))
    assert len(names(tmp_path / "f" / "*.parquet")) == 5


def test_links_to_a_file_of_the_folder_and_hidden_files(tmp_path):
    made(tmp_path, "a.parquet", ".a.parquet", "._b.parquet", "..arrow")
    assert names(tmp_path) == names(tmp_path / "*") == ["a.parquet"]
    (tmp_path / "b.parquet").symlink_to("a.parquet")
    for path in (tmp_path, tmp_path / "*"):
        assert "a.parquet" in problem(path).got and "one file" in problem(path).got


def test_tables_below_a_folder_are_named(tmp_path):
    made(tmp_path, "README.md", ".cache/x.parquet", "data/.hidden.parquet")
    assert problem(tmp_path).expected == "parquet or Arrow files"
    made(tmp_path, "data/one/a.parquet")
    found = problem(tmp_path)
    assert found.got.endswith("which are in data/one") and found.expected == str(tmp_path / "data" / "one")
    made(tmp_path, "b.parquet")
    found = problem(tmp_path)
    assert "below it, in data/one" in found.got
    assert names(tmp_path / "*.parquet") == ["b.parquet"]
    assert names(tmp_path / "**" / "*.parquet") == ["b.parquet", "a.parquet"]


def test_a_selection_of_records_in_a_file_of_its_own_is_refused(tmp_path):
    made(tmp_path, "dataset.arrow")
    state = {"_data_files": [{"filename": "dataset.arrow"}], "_indices_data_files": []}
    for indices in (None, []):
        (tmp_path / "state.json").write_text(json.dumps(state | {"_indices_data_files": indices}))
        assert names(tmp_path) == ["dataset.arrow"]
    (tmp_path / "state.json").write_text(
        json.dumps(state | {"_indices_data_files": [{"filename": "indices.arrow"}]})
    )
    assert "file of indices" in problem(tmp_path).got


def test_names_that_the_system_refuses_are_files_that_are_not_there(tmp_path):
    assert "no such file" in problem(tmp_path / ("x" * 300) / "*.parquet").got
    assert names(tmp_path / ("x" * 300)) == ["x" * 300]  # opening it tells what is wrong
