"""Places of COCO's images: each path that a release gives an image is found again from each of its names."""

import random

import pytest

from lmmkit.data.sources.joined.coco_images import FOLDERS, CocoFolders, changed_at, path_at, spellings

NUMBER = "000000391895.jpg"
NAMES = [NUMBER, f"COCO_train2014_{NUMBER}", f"COCO_val2014_{NUMBER}"]


def plainly(files, name):
    """Returns the first path that is there, by looking for each: names before folders."""
    others = [each for each in NAMES if each != name] if name in NAMES else []
    for spelled in [name, *others]:
        for folder in FOLDERS:
            if (path := f"{folder}/{spelled}".lstrip("/")) in files:
                return path
    return name


def test_a_path_is_found_from_each_name():
    rng = random.Random(0)
    known = [f"{folder}/{name}".lstrip("/") for folder in FOLDERS for name in [*NAMES, "a.jpg"]]
    for case in range(200):
        files = rng.sample(known, rng.randrange(4))
        found = CocoFolders(
            {f: frozenset(p.rpartition("/")[2] for p in files if p.rpartition("/")[0] == f) for f in FOLDERS}
        )
        for name in [*NAMES, "a.jpg", "b.jpg"]:
            assert path_at(name, found.place(name)) == plainly(files, name), (case, files, name)
    for value in (None, 3, ["a.jpg"], "train2017/a.jpg"):
        assert path_at(value, found.place(value)) == value


@pytest.mark.parametrize(
    "name", ["x391895.jpg", "COCO_391895.jpg", f"{NUMBER}.jpg", f"a/{NUMBER}", f"{NUMBER}\n"]
)
def test_other_names_have_one_spelling(name):
    assert spellings(name) == (name,)
    assert len(spellings(f"COCO_test2015_{NUMBER}")) == 4


def test_a_new_file_changes_the_times(tmp_path):
    assert changed_at(str(tmp_path / "none")) == [0] * len(FOLDERS)
    (tmp_path / "val2017").mkdir()
    before = changed_at(str(tmp_path))
    assert before[0] and before[4] and before[1:4] == [0, 0, 0]
    (tmp_path / "val2017" / "a.jpg").touch()
    while (after := changed_at(str(tmp_path))) == before:  # a file system's clock may be coarse
        (tmp_path / "val2017" / "b.jpg").touch()
        (tmp_path / "val2017" / "b.jpg").unlink()
    assert after[:4] == before[:4]
    assert CocoFolders.list(str(tmp_path)).files["val2017"] == {"a.jpg"}
