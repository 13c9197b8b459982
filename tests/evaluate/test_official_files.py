"""Official files are read as they were published; everything wrong with them is reported at once."""

from __future__ import annotations

import pytest

from lmmkit.errors import UserError
from lmmkit.evaluate.official_files import MOST_NAMED, OfficialFiles, pointer, upload_problems

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
SPEC = {"id": int, "text": (str, type(None))}


def opened(folder) -> OfficialFiles:
    return OfficialFiles(folder, split="val", splits=("val", "test"))


def problems(files: OfficialFiles):
    with pytest.raises(UserError) as caught:
        files.check()
    return caught.value.problems


def test_a_file_is_found_in_the_first_folder_that_has_it(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.json").write_text("[1]")
    files = opened(tmp_path)
    assert files.find("a.json", under=("", "data")) == tmp_path / "data/a.json"
    assert files.find_folder("images", "data") == tmp_path / "data"
    files.check()
    assert files.find("b.json", under=("", "data")) is None
    assert files.find_folder("images") is None
    no_file, no_folder = problems(files)
    assert (no_file.code, no_file.got) == ("benchmarks/no-file", "no such file")
    assert "b.json or data/b.json" in no_file.expected
    assert no_folder.got == "no such folder"


def test_a_missing_folder_is_one_problem(tmp_path):
    files = opened(tmp_path / "vqa")
    assert files.json(files.find("a.json")) is None
    assert files.images(files.find_folder("images"), ["a.jpg"]) == [""]
    assert [p.code for p in problems(files)] == ["benchmarks/no-file"]


def test_an_unknown_split_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UserError) as caught:
        OfficialFiles(tmp_path, split="tets", splits=("val", "test"))
    (problem,) = caught.value.problems
    assert problem.code == "benchmarks/unknown-split" and "Did you mean `test`?" in problem.hint


@pytest.mark.parametrize("data", [POINTER, b"/annex/objects/SHA256E-s7--4d7a.json\n"])
def test_a_pointer_in_place_of_a_file_is_named(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    files = opened(tmp_path)
    assert files.json(files.find("a.json")) is None
    (problem,) = problems(files)
    assert problem.code == "benchmarks/lfs-pointer" and "git lfs pull" in problem.hint
    assert pointer(data) and not pointer(b"[1]")


@pytest.mark.parametrize(
    "data, code",
    [
        (b"<html>404</html>", "benchmarks/not-json"),
        (b"[1, 2", "benchmarks/not-json"),
        (b"[1] [2]", "benchmarks/not-json"),
        (b"[NaN]", "benchmarks/not-json"),
        (b'["\xff"]', "benchmarks/not-json"),
        (b'{"a": 1, "a": 2}', "benchmarks/duplicate-id"),
    ],
)
def test_a_file_that_is_no_sound_json_is_refused(tmp_path, data, code):
    (tmp_path / "a.json").write_bytes(data)
    files = opened(tmp_path)
    files.json(files.find("a.json"))
    assert [p.code for p in problems(files)] == [code]


def test_json_with_blanks_and_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf\n {"a": "\xe2\x82\xac"}\n')
    files = opened(tmp_path)
    assert files.json(files.find("a.json")) == {"a": "€"}
    files.check()


def test_lines_are_divided_at_newlines_only(tmp_path):
    (tmp_path / "a.json").write_bytes('{"t": "a\u2028b"}\r\n\n{"t": "c"}'.encode())
    files = opened(tmp_path)
    assert files.json_lines(files.find("a.json")) == [{"t": "a\u2028b"}, {"t": "c"}]
    files.check()
    (tmp_path / "b.json").write_bytes(b'{"t": "a"}\n{"t": \n')
    files.json_lines(files.find("b.json"))
    (problem,) = problems(files)
    assert problem.where.endswith("b.json: line 2")


def test_each_bad_record_is_named_up_to_a_number(tmp_path):
    path = tmp_path / "a.json"
    bad = [{"text": "x"}, {"id": "1", "text": "x"}, {"id": True, "text": "x"}, {"id": 1, "text": 3}, 7]
    good = [{"id": 5, "text": None, "more": 1}]
    files = opened(tmp_path)
    assert files.records(path, [*bad, *good], SPEC, at="questions") == good
    found = problems(files)
    assert [p.where.rpartition(" ")[2] for p in found] == [f"questions[{i}]" for i in range(5)]
    assert found[0].got == "no key `id`" and found[1].got == "`id`: a text"
    assert found[3].expected == "`text`: a text or null" and found[4].got == "an integer"

    files = opened(tmp_path)
    assert files.records(path, bad * 10, SPEC) == []
    found = problems(files)
    assert len(found) == MOST_NAMED + 1
    assert found[-1].got == "42 more problems of this kind, 50 in all"


def test_a_value_of_another_kind_is_refused(tmp_path):
    files = opened(tmp_path)
    assert files.records(tmp_path / "a", {"a": 1}, SPEC) == []
    assert files.table(tmp_path / "b", [1], SPEC) == {}
    assert [p.code for p in problems(files)] == ["benchmarks/record"] * 2
    files = opened(tmp_path)
    assert files.table(tmp_path / "b", {"7": {"id": 1, "text": "x"}, "8": {}}, SPEC) == {
        "7": {"id": 1, "text": "x"}
    }
    (problem,) = problems(files)
    assert problem.where.endswith("b: `8`")


def test_a_file_without_records_is_refused(tmp_path):
    files = opened(tmp_path)
    assert (
        files.records(tmp_path / "a", [], SPEC, at="data") == []
        and files.table(tmp_path / "b", {}, SPEC) == {}
    )
    assert [(p.code, p.got) for p in problems(files)] == [("benchmarks/record", "no records")] * 2
    (tmp_path / "c").write_text("{broken\n")
    files = opened(tmp_path)
    files.records(tmp_path / "c", files.json_lines(files.find("c")), SPEC)
    assert [p.code for p in problems(files)] == ["benchmarks/not-json"], "the reason alone"


def test_a_file_that_the_system_does_not_give_is_a_problem(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.json").write_text("[1]")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").write_bytes(b"data")
    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    files = opened(tmp_path)
    assert files.json(files.find("a.json")) is None
    files.images(files.find_folder("images"), ["1.jpg"])
    assert [(p.code, p.got) for p in problems(files)] == [
        ("benchmarks/no-file", "Permission denied"), ("benchmarks/no-images", "Permission denied"),
    ]  # fmt: skip


def test_duplicate_ids_are_named(tmp_path):
    files = opened(tmp_path)
    files.records(tmp_path / "a", [{"id": i, "text": "x"} for i in (1, 2, 1, 3, 3)], SPEC, key="id")
    assert [(p.code, p.got) for p in problems(files)] == [
        ("benchmarks/duplicate-id", "id 1 twice"),
        ("benchmarks/duplicate-id", "id 3 twice"),
    ]


def test_ids_of_another_file_are_named(tmp_path):
    files = opened(tmp_path)
    files.same_ids(tmp_path / "a", [2, 3, 4], [1, 2, 3], "the questions")
    missing, extra = problems(files)
    assert missing.code == extra.code == "benchmarks/other-version"
    assert missing.got == "no record for 1" and extra.got == "records without a question: 4"
    files = opened(tmp_path)
    files.same_ids(tmp_path / "a", [3, 1], [1, 3], "the questions")
    files.check()


def test_images_are_found_by_name(tmp_path):
    names = [*(f"{i}.jpg" for i in range(40)), "a/image.png", "b c/ü.png", "0.jpg"]
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"data")
    files = opened(tmp_path)
    folder = files.find_folder("images")
    assert files.images(folder, names) == [str(tmp_path / "images" / name) for name in names]
    files.check()


@pytest.mark.parametrize("n", [12, 100])  # asked for one by one, and listed
def test_absent_images_are_counted_and_some_named(tmp_path, n):
    (tmp_path / "images").mkdir()
    for i in range(0, n, 2):
        (tmp_path / f"images/{i}.jpg").write_bytes(b"data")
    (tmp_path / "images/1.jpg").mkdir()
    files = opened(tmp_path)
    files.images(files.find_folder("images"), [f"{i}.jpg" for i in range(n)] * 2 + ["none/1.jpg"])
    (problem,) = problems(files)
    absent = n // 2 + 1
    more = f" and {absent - MOST_NAMED} more" if absent > MOST_NAMED else ""
    assert problem.code == "benchmarks/no-images"
    assert problem.got.startswith("no 1.jpg, 3.jpg, 5.jpg") and problem.got.endswith(more)
    assert problem.got.count(".jpg") == min(absent, MOST_NAMED)


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../b.jpg", "", "http://x/y.jpg"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, name):
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"data")
    files = opened(tmp_path)
    files.images(files.find_folder("images"), [name])
    (problem,) = problems(files)
    assert problem.code == "benchmarks/no-images" and "path" in problem.got


def test_a_pointer_in_place_of_images_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(POINTER)
    files = opened(tmp_path)
    files.images(files.find_folder("images"), ["a.jpg"])
    assert [p.code for p in problems(files)] == ["benchmarks/lfs-pointer"]


def test_answers_for_an_upload_belong_to_the_questions():
    assert not list(upload_problems("--answers", ["1", "2"], ["2", "1"]))
    missing, extra = upload_problems("--answers", map(str, range(20)), ["0", "x"])
    assert missing.code == extra.code == "benchmarks/upload-answers"
    assert missing.got == "no answer to 1, 2, 3, 4, 5, 6, 7, 8 and 11 more" and extra.got == "answers to x"
