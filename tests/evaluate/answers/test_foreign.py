"""Answers of other programs: each form is found out and read; anything else is refused."""

from __future__ import annotations

import json
import sys

import openpyxl
import pytest

from lmmkit.errors import MachineError, UserError
from lmmkit.evaluate.answers.foreign import read_foreign


def lines(*values) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


CASES = {
    "llava": ("a.jsonl", lines({"question_id": 7, "prompt": "Is it?\nAnswer.", "text": "Yes", "metadata": {}}), "jsonl", ("7", "Yes", "Is it?\nAnswer.")),
    "vqav2": ("a.json", json.dumps([{"question_id": 42000, "answer": "yes"}]), "json", ("42000", "yes", "")),
    "gqa": ("a.json", json.dumps([{"questionId": "201", "prediction": "no"}]), "json", ("201", "no", "")),
    "vizwiz": ("a.json", json.dumps([{"image": "VizWiz_test_0.jpg", "answer": "mug"}]), "json", ("VizWiz_test_0.jpg", "mug", "")),
    "mm-vet": ("a.json", json.dumps({"v1_0": "x = -1"}), "json", ("v1_0", "x = -1", "")),
    "scienceqa": ("a.json", json.dumps({"acc": 1.0, "outputs": {"4": "B"}}), "json", ("4", "B", "")),
    "seed": ("a.txt", lines({"question_id": "1", "prediction": "A"}, {"question_id": "2", "prediction": "B"}), "jsonl", ("1", "A", "")),
    "pope": ("a.json", lines({"question": "Is there a dog?", "answer": "no"}, {"question": "A cat?", "answer": "yes"}), "jsonl", ("", "no", "Is there a dog?")),
    "lmms": ("s.jsonl", lines({"doc_id": 0, "input": "What?", "filtered_resps": [["red"]], "target": "red", "doc": {"question_id": "q1"}}), "lmms-eval", ("q1", "red", "What?")),
    "tsv": ("t.tsv", "index\tquestion\tprediction\n3\tWhat?\tred\n", "vlmevalkit", ("3", "red", "What?")),
    "csv": ("t.csv", 'index,question,prediction\n3,"What, now?",\n', "vlmevalkit", ("3", "", "What, now?")),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_form_is_found_out_and_read(tmp_path, case):
    name, text, form, first = CASES[case]
    (tmp_path / name).write_text(text)
    got, found = read_foreign(tmp_path / name)
    assert got == form and (found[0].id, found[0].text, found[0].prompt) == first and found[0].place == 1
    assert read_foreign(tmp_path / name, form) == (got, found)


def test_a_table_of_vlmevalkit(tmp_path):
    book = openpyxl.Workbook()
    book.active.append(["index", "question", "A", "prediction"])
    book.active.append([1, "What?", "x", "A"])
    book.active.append([1000001, "What?", "y", None])
    book.save(tmp_path / "t.xlsx")
    form, found = read_foreign(tmp_path / "t.xlsx")
    assert form == "vlmevalkit" and [(a.id, a.text) for a in found] == [("1", "A"), ("1000001", "")]
    assert [a.prompt for a in found] == ["What?\nA. x", "What?\nA. y"]


def test_a_table_of_vlmevalkit_names_subsets_images_and_failures(tmp_path):
    (tmp_path / "t.tsv").write_text(
        "index\tquestion\tcategory\timage_path\tprediction\n1\tDog?\trandom,popular\td/1.jpg\tYes\n"
        "2\tCat?\tpopular\td/2.jpg\tFailed to obtain answer via API.\n3\tCow?\t\t\tI failed\n"
    )
    _, found = read_foreign(tmp_path / "t.tsv")
    assert [(a.image, a.groups, a.failed) for a in found] == [
        ("d/1.jpg", {"random", "popular"}, False), ("d/2.jpg", {"popular"}, True), ("", set(), False),
    ]  # fmt: skip


def test_a_table_needs_its_extra(tmp_path, monkeypatch):
    (tmp_path / "t.xlsx").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(MachineError, match="answers/not-installed") as error:
        read_foreign(tmp_path / "t.xlsx")
    assert "lmmkit[benchmarks]" in error.value.problems[0].hint


def test_a_folder_of_mme_results(tmp_path):
    (tmp_path / "count.txt").write_text("1.png\tIs it two?\tYes\tyes\n1.png\tIs it three?\tNo\tyes\n")
    (tmp_path / "color.txt").write_text("2.png\tRed?\tYes\tNo\n")
    form, found = read_foreign(tmp_path)
    assert form == "mme" and [(a.id, a.prompt, a.text) for a in found] == [
        ("color/2.png", "Red?", "No"), ("count/1.png", "Is it two?", "yes"), ("count/1.png", "Is it three?", "yes"),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [
    ("a.json", "{"), ("a.json", "[]"), ("a.json", "[1]"), ("a.json", "[{}]"), ("a.json", '{"a": 1}'), ("a.json", "3"),
    ("a.jsonl", ""), ("a.jsonl", "[1]\n"), ("a.jsonl", '{"question_id": 1}\n'), ("a.jsonl", '{"filtered_resps": []}\n'),
    ("t.csv", "index,answer\n1,x\n"), ("t.xlsx", "no table"), ("a.txt", "version https://git-lfs.github.com/spec/v1\n"),
])  # fmt: skip
def test_other_files_are_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="answers/format") as error:
        read_foreign(tmp_path / name)
    assert "vlmevalkit" in error.value.problems[0].expected


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="answers/format"):
        read_foreign(tmp_path / "none.json")
